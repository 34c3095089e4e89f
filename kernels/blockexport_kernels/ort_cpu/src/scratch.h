// Memory that a thread keeps from call to call.
#pragma once
#include <cstdint>
#include <vector>

namespace blockexport {

struct alignas(64) Line {
  uint8_t bytes[64];
};

// At least `count` elements at a multiple of 64 bytes; only ever grows. What was in it may be lost.
template <typename T>
T* scratch(std::vector<Line>& memory, int64_t count) {
  const size_t lines = (static_cast<size_t>(count) * sizeof(T) + sizeof(Line) - 1) / sizeof(Line);
  if (memory.size() < lines) memory = std::vector<Line>(lines);
  return reinterpret_cast<T*>(memory.data());
}

}  // namespace blockexport
