// What operators check of what they are given.
#pragma once
#include "layout.h"
#include "ort.h"

namespace blockexport {

inline void expect(bool holds, const char* op, const char* input, const Tensor& given, const std::string& wanted) {
  if (!holds) refuse(op, std::string("'") + input + "' is " + text_of(given.shape) + ", wanted " + wanted);
}

inline Shape with_last(Shape shape, int64_t length) {
  shape.back() = length;
  return shape;
}

inline Layout layout_of(const char* op, const Attributes& attributes) {
  const int64_t bits = attributes.integer(op, "bits");
  const int64_t block = attributes.integer(op, "block_size");
  const int64_t k = attributes.integer(op, "K");
  if (bits != 4 && bits != 8) refuse(op, "bits is " + std::to_string(bits) + ", wanted 4 or 8");
  if (block < 16 || block > kLongestBlock || (block & (block - 1)) != 0) {
    refuse(op, "block_size is " + std::to_string(block) + ", wanted 16, 32, 64, 128 or 256");
  }
  if (k < 1) refuse(op, "K is " + std::to_string(k) + ", wanted 1 or more");
  return Layout(static_cast<int>(bits), static_cast<int>(block), k);
}

}  // namespace blockexport
