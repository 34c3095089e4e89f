// The path for AVX-512 with VNNI.
#include "avx512.h"

#include "attention_body.h"
#include "elementwise.h"

namespace blockexport::avx512 {
namespace {

void turn(const float* keys, int64_t count, int64_t dim, float* out) {
  alignas(64) static const float kNothing[kLongestHead] = {};
  __m512i columns[16];
  for (int64_t first = 0; first < kKeys; first += 16) {
    const void* rows[16];
    for (int64_t i = 0; i < 16; ++i) rows[i] = first + i < count ? keys + (first + i) * dim : kNothing;
    for (int64_t at = 0; at < dim; at += 16) {
      transpose(rows, at, first_lanes(dim - at), columns);
      for (int64_t i = at; i < dim && i < at + 16; ++i) _mm512_store_si512(out + i * kKeys + first, columns[i - at]);
    }
  }
}

}  // namespace

void attend(const AttentionTask& task) { attend_with(task, turn); }

}  // namespace blockexport::avx512

namespace blockexport {

const Path kAvx512 = {"avx512",
                      quantise,
                      avx512::dot,
                      avx512::tiles,
                      {avx512::dense_dot<float>, avx512::dense_tiles<float>},
                      {avx512::dense_dot<Bf16>, avx512::dense_tiles<Bf16>},
                      silu_times,
                      rms_norm,
                      rotate,
                      avx512::attend};

}  // namespace blockexport
