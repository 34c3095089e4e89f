// CachedAttention: com.microsoft::GroupQueryAttention with the cache updated in place, and the rotary embedding in it.
#include "attention.h"

#include <algorithm>
#include <cstring>

#include "checks.h"
#include "paths.h"
#include "scratch.h"

namespace blockexport {
namespace {

constexpr const char* kName = "CachedAttention";

struct Shapes {
  int64_t batch;
  int64_t seq;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t capacity;

  int64_t heads_each() const { return num_heads / num_kv_heads; }
  int64_t width() const { return num_heads * head_dim; }
  int64_t kv_width() const { return num_kv_heads * head_dim; }
};

struct Rotary {
  const float* cos = nullptr;  // (batch, seq, half)
  const float* sin = nullptr;
  int64_t half = 0;
};

// CachedAttention(query, key, value, past_key, past_value, last_slot, total_tokens[, cos, sin])
//     -> (attended, present_key, present_value)
//
// query (batch, seq, num_heads * head_dim), key and value (batch, seq, kv_num_heads * head_dim), new and not rotated yet
// if cos and sin (batch, seq, rotated / 2) are given; past (batch, kv_num_heads, capacity, head_dim); last_slot (batch)
// int32: the slot of each row's last new token; total_tokens int32: of the longest row. A call of as many tokens as
// there are in all is a prompt: it fills the slots from 0 on, in every row.
struct CachedAttention final : Kernel {
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t window;
  float scale = 0.0f;
  float softcap = 0.0f;

  explicit CachedAttention(const Attributes& attributes)
      : num_heads(attributes.integer(kName, "num_heads")),
        num_kv_heads(attributes.integer(kName, "kv_num_heads")),
        window(attributes.integer_or("local_window_size", -1)) {
    if (!attributes.real("scale", &scale)) refuse(kName, "the attribute 'scale' is missing");
    attributes.real("softcap", &softcap);
    if (num_kv_heads < 1 || num_heads < 1 || num_heads % num_kv_heads != 0) {
      refuse(kName, std::to_string(num_heads) + " heads cannot share " + std::to_string(num_kv_heads));
    }
  }

  void compute(const Context& context) const override {
    const Tensor query = context.input(0), past_key = context.input(3), past_value = context.input(4);
    const Shapes shapes = check(query, past_key, past_value);
    const Shape kv = {shapes.batch, shapes.seq, shapes.kv_width()};
    const Tensor key = given(context, 1, "key", kv), value = given(context, 2, "value", kv);
    const Rotary rotary = rotary_of(context, shapes);
    float* out = context.output(0, query.shape);
    float* keys = cache(context, 1, past_key);
    float* values = cache(context, 2, past_value);
    const std::vector<int64_t> firsts = first_slots(context, shapes);
    if (shapes.seq == 0) return;
    append(context, shapes, rotary, firsts, key.floats(), value.floats(), keys, values);
    attend(context, shapes, rotary, firsts, query.floats(), keys, values, out);
  }

 private:
  Shapes check(const Tensor& query, const Tensor& past_key, const Tensor& past_value) const {
    expect(query.shape.size() == 3 && query.shape[2] % num_heads == 0, kName, "query", query,
           "(batch, seq, " + std::to_string(num_heads) + " * head_dim)");
    const int64_t head_dim = query.shape[2] / num_heads;
    if (head_dim > kLongestHead) refuse(kName, "head_dim is " + std::to_string(head_dim) + ", wanted 1024 or less");
    const Shape& past = past_key.shape;
    expect(past_key.type == ort::kFloat && past.size() == 4 && past[0] == query.shape[0] && past[1] == num_kv_heads &&
               past[3] == head_dim,
           kName, "past_key", past_key, "(batch, kv_num_heads, capacity, head_dim) fp32");
    expect(past_value.type == ort::kFloat && past_value.shape == past, kName, "past_value", past_value,
           text_of(past) + " fp32");
    return {query.shape[0], query.shape[1], num_heads, num_kv_heads, head_dim, past[2]};
  }

  static Tensor given(const Context& context, size_t index, const char* name, const Shape& shape) {
    const Tensor tensor = context.input(index);
    expect(tensor.type == ort::kFloat && tensor.shape == shape, kName, name, tensor, text_of(shape) + " fp32");
    return tensor;
  }

  static Rotary rotary_of(const Context& context, const Shapes& shapes) {
    const Tensor cos = context.input(7);
    if (!cos) return {};
    const int64_t half = cos.shape.size() == 3 ? cos.shape[2] : 0;
    const Shape wanted = {shapes.batch, shapes.seq, half};
    expect(2 * half <= shapes.head_dim, kName, "cos", cos, "at most half of head_dim in the last axis");
    return {given(context, 7, "cos", wanted).floats(), given(context, 8, "sin", wanted).floats(), half};
  }

  // The present cache; what was there before is copied if the caller did not bind both to one memory.
  static float* cache(const Context& context, size_t index, const Tensor& past) {
    float* present = context.output(index, past.shape);
    if (present != past.data) std::memcpy(present, past.data, static_cast<size_t>(past.size()) * sizeof(float));
    return present;
  }

  static std::vector<int64_t> first_slots(const Context& context, const Shapes& shapes) {
    const Tensor last = context.input(5), total = context.input(6);
    expect(last.type == ort::kInt32 && last.size() == shapes.batch, kName, "last_slot", last,
           text_of({shapes.batch}) + " int32");
    expect(total.type == ort::kInt32 && total.size() == 1, kName, "total_tokens", total, "one int32");
    const bool is_prompt = *static_cast<const int32_t*>(total.data) == shapes.seq;
    std::vector<int64_t> out;
    for (int64_t row = 0; row < shapes.batch; ++row) {
      const int64_t first = is_prompt ? 0 : static_cast<const int32_t*>(last.data)[row] + 1 - shapes.seq;
      if (first < 0 || first + shapes.seq > shapes.capacity) {
        refuse(kName, std::to_string(shapes.seq) + " tokens from slot " + std::to_string(first) +
                          " on do not lie in a cache of " + std::to_string(shapes.capacity));
      }
      out.push_back(first);
    }
    return out;
  }

  static void append(const Context& context, const Shapes& shapes, const Rotary& rotary,
                     const std::vector<int64_t>& firsts, const float* key, const float* value, float* keys,
                     float* values) {
    const int64_t dim = shapes.head_dim;
    const auto append_head = [&](int64_t index) {
      const int64_t row = index / shapes.num_kv_heads, head = index % shapes.num_kv_heads;
      for (int64_t token = 0; token < shapes.seq; ++token) {
        const int64_t at = (row * shapes.seq + token) * shapes.kv_width() + head * dim;
        const int64_t to = (index * shapes.capacity + firsts[static_cast<size_t>(row)] + token) * dim;
        std::memcpy(values + to, value + at, static_cast<size_t>(dim) * sizeof(float));
        std::memcpy(keys + to, key + at, static_cast<size_t>(dim) * sizeof(float));
        const int64_t angle = (row * shapes.seq + token) * rotary.half;
        path().rotate(keys + to, rotary.cos + angle, rotary.sin + angle, rotary.half);
      }
    };
    const int64_t count = shapes.batch * shapes.num_kv_heads;
    if (shapes.seq > 8) return context.parallel(count, append_head);
    for (int64_t index = 0; index < count; ++index) append_head(index);
  }

  // How the rows of one key-value head are cut into tasks: by heads, and by tokens.
  struct Cut {
    int64_t heads;
    int64_t tokens;

    Cut(const Shapes& shapes, int64_t longest) {
      heads = std::min<int64_t>(shapes.heads_each(), kAttentionRows);
      const int64_t lone = shapes.batch * shapes.num_kv_heads * shapes.seq;
      // With few rows, heads are shared out too; over a short cache turning its keys again would cost more.
      const int64_t wanted = longest >= kLongCache ? 8 : 2;
      while (heads > 1 && lone * ((shapes.heads_each() + heads - 1) / heads) < wanted) heads = (heads + 1) / 2;
      tokens = std::max<int64_t>(1, kAttentionRows / heads);
    }
  };

  void attend(const Context& context, const Shapes& shapes, const Rotary& rotary, const std::vector<int64_t>& firsts,
              const float* query, const float* keys, const float* values, float* out) const {
    const Cut cut(shapes, *std::max_element(firsts.begin(), firsts.end()) + shapes.seq);
    const int64_t head_parts = (shapes.heads_each() + cut.heads - 1) / cut.heads;
    const int64_t token_parts = (shapes.seq + cut.tokens - 1) / cut.tokens;
    context.parallel(shapes.batch * shapes.num_kv_heads * head_parts * token_parts, [&](int64_t index) {
      // Last tokens first: they see most.
      const int64_t token = (token_parts - 1 - index % token_parts) * cut.tokens;
      const int64_t first_head = index / token_parts % head_parts * cut.heads;
      const int64_t shared = index / token_parts / head_parts;  // row and key-value head
      const int64_t row = shared / shapes.num_kv_heads;
      const int64_t head = shared % shapes.num_kv_heads * shapes.heads_each() + first_head;
      const int64_t at = (row * shapes.seq + token) * shapes.width() + head * shapes.head_dim;
      const int64_t cache_at = shared * shapes.capacity * shapes.head_dim;
      const int64_t angle = (row * shapes.seq + token) * rotary.half;
      thread_local std::vector<Line> memory;
      path().attend({shapes.head_dim, scale, softcap, window, query + at, out + at, shapes.width(),
                     std::min(cut.heads, shapes.heads_each() - first_head), std::min(cut.tokens, shapes.seq - token),
                     firsts[static_cast<size_t>(row)] + token, keys + cache_at, values + cache_at, rotary.cos + angle,
                     rotary.sin + angle, rotary.half, scratch<float>(memory, attention_scratch(shapes.head_dim))});
    });
  }

  static constexpr int64_t kLongCache = 1024;
};

}  // namespace

Operator cached_attention() {
  const Port floats{ort::kFloat}, integers{ort::kInt32}, angles{ort::kFloat, ort::kOptional};
  return {kName,
          {floats, floats, floats, floats, floats, integers, integers, angles, angles},
          {floats, floats, floats},
          [](const Attributes& attributes) -> std::unique_ptr<Kernel> {
            return std::make_unique<CachedAttention>(attributes);
          }};
}

}  // namespace blockexport
