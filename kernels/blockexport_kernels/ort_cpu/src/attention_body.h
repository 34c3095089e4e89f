// Attention over a cache, for the path that includes it: softmax is taken block of keys by block of keys, as in
// FlashAttention (arXiv:2205.14135), so the scores of a long cache are never held.
#pragma once
#include "attention_task.h"
#include "elementwise.h"

namespace blockexport {
namespace {

constexpr int kKeys = kAttentionKeys;
// Only an index that the compiler knows early keeps an array out of memory.
#define EACH _Pragma("GCC unroll 4")
constexpr int kSide = 4;   // of a tile of products: rows by vectors

inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b),
                                                  reinterpret_cast<__m512>(c)));
#else
  return a * b + c;
#endif
}

inline void store(float* at, Floats v) { std::memcpy(at, &v, sizeof(v)); }
inline Floats filled(float value) { return Floats{} + value; }
inline Floats where(Ints condition, Floats yes, Floats no) { return condition ? yes : no; }

inline float most_of(Floats v) {
  float out = v[0];
  for (int i = 1; i < kLanes; ++i) out = v[i] > out ? v[i] : out;
  return out;
}

// tanh(x) = 1 - 2 / (exp(2x) + 1), and near 0, where that cancels, its Taylor polynomial of degree 11 (relative error
// below 2e-9 there).
inline Floats hyperbolic_tangent(Floats x) {
  const Floats square = x * x;
  Floats p = filled(-1382.0f / 155925);
  p = p * square + 62.0f / 2835;
  p = p * square - 17.0f / 315;
  p = p * square + 2.0f / 15;
  p = p * square - 1.0f / 3;
  p = p * square + 1.0f;
  return where(square < filled(0.09f), p * x, 1.0f - 2.0f / (exponential(x + x) + 1.0f));
}

// y (kSide rows, kVectors vectors) += a (kSide rows of `count`) . b (count, vectors)
template <int kVectors>
inline void tile(int64_t count, const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* y,
                 int64_t y_stride) {
  Floats totals[kSide][kVectors];
  EACH for (int r = 0; r < kSide; ++r) {
    EACH for (int v = 0; v < kVectors; ++v) totals[r][v] = load<Floats>(y + r * y_stride + v * kLanes);
  }
  for (int64_t i = 0; i < count; ++i) {
    Floats row[kVectors];
    EACH for (int v = 0; v < kVectors; ++v) row[v] = load<Floats>(b + i * b_stride + v * kLanes);
    EACH for (int r = 0; r < kSide; ++r) {
      const Floats one = filled(a[r * a_stride + i]);
      EACH for (int v = 0; v < kVectors; ++v) totals[r][v] = multiply_add(one, row[v], totals[r][v]);
    }
  }
  EACH for (int r = 0; r < kSide; ++r) {
    EACH for (int v = 0; v < kVectors; ++v) store(y + r * y_stride + v * kLanes, totals[r][v]);
  }
}

// The same for any number of rows (padded to kSide) and of columns (a multiple of kLanes).
void products(int64_t rows, int64_t count, int64_t columns, const float* a, int64_t a_stride, const float* b,
              int64_t b_stride, float* y, int64_t y_stride) {
  for (int64_t column = 0; column < columns; column += kSide * kLanes) {
    const int64_t vectors = (columns - column) / kLanes;
    const auto run = vectors >= 4 ? tile<4> : vectors == 3 ? tile<3> : vectors == 2 ? tile<2> : tile<1>;
    for (int64_t r = 0; r < rows; r += kSide) {
      run(count, a + r * a_stride, a_stride, b + column, b_stride, y + r * y_stride + column, y_stride);
    }
  }
}

// Rows of one task: row r is head r % num_heads of token r / num_heads.
struct QueryRows {
  const AttentionTask& task;
  int64_t count;
  int64_t padded_dim;
  float* scores;   // (kAttentionRows, kKeys)
  float* sums;     // (kAttentionRows, padded_dim)
  float* values;   // (kKeys, padded_dim), if the cache's own rows are no whole vectors
  float* keys;     // (head_dim, kKeys)
  float* queries;  // (kAttentionRows, head_dim), rotated and scaled
  float most[kAttentionRows];
  float weight[kAttentionRows];

  explicit QueryRows(const AttentionTask& task_)
      : task(task_),
        count(task.num_heads * task.num_tokens),
        padded_dim(padded_head(task.head_dim)),
        scores(task.scratch),
        sums(scores + kAttentionRows * kKeys),
        values(sums + kAttentionRows * padded_dim),
        keys(values + kKeys * padded_dim),
        queries(keys + task.head_dim * kKeys) {
    std::memset(sums, 0, static_cast<size_t>((kAttentionRows + kKeys) * padded_dim) * sizeof(float));
    for (int row = 0; row < kAttentionRows; ++row) {
      most[row] = -__builtin_inff();
      weight[row] = 0.0f;
    }
  }

  int64_t offset(int64_t row) const {
    return row % task.num_heads * task.head_dim + row / task.num_heads * task.stride;
  }
  int64_t slot(int64_t row) const { return task.first_slot + row / task.num_heads; }
  int64_t first_seen(int64_t row) const {
    const int64_t first = task.window > 0 ? slot(row) + 1 - task.window : 0;
    return first > 0 ? first : 0;
  }
};

void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float first = head[i], second = head[i + half];
    head[i] = first * cos[i] - second * sin[i];
    head[i + half] = second * cos[i] + first * sin[i];
  }
}

void load_queries(const QueryRows& rows) {
  const AttentionTask& task = rows.task;
  std::memset(rows.queries, 0, static_cast<size_t>(kAttentionRows * task.head_dim) * sizeof(float));
  for (int64_t row = 0; row < rows.count; ++row) {
    const float* in = task.queries + rows.offset(row);
    float* out = rows.queries + row * task.head_dim;
    for (int64_t i = 0; i < task.head_dim; ++i) out[i] = in[i] * task.scale;
    const int64_t angle = row / task.num_heads * task.half;
    rotate(out, task.cos + angle, task.sin + angle, task.half);
  }
}

// scores = softmax's numerators for slots [from, from + kKeys); sums and weights are brought to the new maximum.
void to_weights(QueryRows& rows, int64_t from) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  constexpr float kNone = -__builtin_inff();
  for (int64_t row = 0; row < rows.count; ++row) {
    float* scores = rows.scores + row * kKeys;
    const Ints last = lane * 0 + static_cast<int32_t>(rows.slot(row) - from);
    const Ints first = lane * 0 + static_cast<int32_t>(rows.first_seen(row) - from);
    Floats most = filled(kNone);
    for (int at = 0; at < kKeys; at += kLanes) {
      Floats score = load<Floats>(scores + at);
      if (rows.task.softcap > 0) score = rows.task.softcap * hyperbolic_tangent(score / rows.task.softcap);
      const Ints key = lane + at;
      score = where((key <= last) & (key >= first), score, filled(kNone));
      store(scores + at, score);
      most = where(score > most, score, most);
    }
    const float before = rows.most[row];
    const float now = most_of(most) > before ? most_of(most) : before;
    if (now == kNone) {  // nothing of this block is seen, nor was anything before it
      std::memset(scores, 0, kKeys * sizeof(float));
      continue;
    }
    Floats total = {};
    for (int at = 0; at < kKeys; at += kLanes) {
      const Floats score = load<Floats>(scores + at);
      const Floats weight = where(score > kNone, exponential(score - now), Floats{});
      store(scores + at, weight);
      total += weight;
    }
    const float fading = before > kNone ? exponential(filled(before - now))[0] : 0.0f;
    rows.weight[row] = rows.weight[row] * fading + sum_of(total);
    rows.most[row] = now;
    float* sums = rows.sums + row * rows.padded_dim;
    for (int64_t i = 0; i < rows.padded_dim; i += kLanes) store(sums + i, load<Floats>(sums + i) * fading);
  }
}

// `turn` writes keys (count, head_dim) as (head_dim, kKeys), and zeros behind the last key.
template <typename Turn>
void attend_with(const AttentionTask& task, const Turn& turn) {
  const int64_t dim = task.head_dim;
  QueryRows rows(task);
  const int64_t padded = rows.padded_dim;
  load_queries(rows);
  const int64_t end = rows.slot(rows.count - 1) + 1;
  for (int64_t from = rows.first_seen(0) / kKeys * kKeys; from < end; from += kKeys) {
    const int64_t count = end - from < kKeys ? end - from : kKeys;
    turn(task.keys + from * dim, count, dim, rows.keys);
    std::memset(rows.scores, 0, kAttentionRows * kKeys * sizeof(float));
    products(rows.count, dim, kKeys, rows.queries, dim, rows.keys, kKeys, rows.scores, kKeys);
    to_weights(rows, from);
    const float* values = task.values + from * dim;
    if (padded != dim) {
      for (int64_t key = 0; key < count; ++key) {
        std::memcpy(rows.values + key * padded, values + key * dim, static_cast<size_t>(dim) * sizeof(float));
      }
      values = rows.values;
    }
    products(rows.count, count, padded, rows.scores, kKeys, values, padded, rows.sums, padded);
  }
  for (int64_t row = 0; row < rows.count; ++row) {
    float* out = task.out + rows.offset(row);
    const float inverse = 1.0f / rows.weight[row];
    for (int64_t i = 0; i < dim; ++i) out[i] = rows.sums[row * padded + i] * inverse;
  }
}

[[maybe_unused]] void turn_one_by_one(const float* keys, int64_t count, int64_t dim, float* out) {
  for (int64_t i = 0; i < dim; ++i) {
    for (int64_t key = 0; key < kKeys; ++key) out[i * kKeys + key] = key < count ? keys[key * dim + i] : 0.0f;
  }
}

}  // namespace
}  // namespace blockexport
