// Checks at the border between Python and C++: what was wrong, wanted and given.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#define VOS_CHECK(condition, argument, wanted, given)                                           \
  do {                                                                                          \
    if (!(condition))                                                                           \
      throw std::invalid_argument(std::string(argument) + ": wanted " + (wanted) + ", given " + \
                                  std::to_string(given));                                       \
  } while (0)
