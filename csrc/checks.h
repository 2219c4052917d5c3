// Argument checks between Python and C++; messages read "what: wanted X, given Y".
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
