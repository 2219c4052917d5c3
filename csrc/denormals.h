// Numbers below the normal ones as zeros, with which many processors take a hundred times as long.
#pragma once

namespace vosengine {

// Sets that for this thread and `threads` - 1 more of its OpenMP team; returns whether this thread
// had it so before. Does nothing, and says false, on processors other than x86.
bool flush_denormals(bool flush, int threads);

}  // namespace vosengine
