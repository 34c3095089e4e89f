// What an attention is asked for, and what one task of it does.
#pragma once
#include <cstdint>

namespace blockexport {

// One row of a batch, one key-value head. Query heads that share it are rows of one product.
struct AttentionTask {
  int64_t head_dim;
  float scale;
  float softcap;     // 0: none
  int64_t window;    // tokens that a token sees, itself the last; 0 or less: all
  // The query of head h and token t is at h * head_dim + t * stride, and so is the result.
  const float* queries;
  float* out;
  int64_t stride;
  int64_t num_heads;
  int64_t num_tokens;
  int64_t first_slot;  // of the first token; a token sees the slots up to its own
  const float* keys;   // (slots, head_dim)
  const float* values;
  // Rotary embedding of the queries, (num_tokens, half) each. Keys in the cache are rotated already.
  const float* cos;
  const float* sin;
  int64_t half;        // half of the components that are rotated, which are the first of head_dim
  float* scratch;      // attention_scratch(head_dim), at a multiple of 64 bytes
};

constexpr int kAttentionRows = 32;  // num_heads * num_tokens of a task, at most
constexpr int kAttentionKeys = 64;  // in a block
constexpr int kLongestHead = 1024;

constexpr int64_t padded_head(int64_t dim) { return (dim + 15) / 16 * 16; }

// Floats of scratch.
constexpr int64_t attention_scratch(int64_t dim) {
  return kAttentionRows * (dim + kAttentionKeys + padded_head(dim)) + kAttentionKeys * (dim + padded_head(dim));
}

}  // namespace blockexport
