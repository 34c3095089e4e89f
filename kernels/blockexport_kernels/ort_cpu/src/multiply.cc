// Products of one matrix of activations with several of weights: who does what on which thread.
#include "multiply.h"

#include <algorithm>

#include "activations.h"
#include "scratch.h"

namespace blockexport {
namespace {

// Few rows: a task is a run of rows of weights, long enough for the prefetchers and small enough to stay in the second
// cache for the next row of activations. A few tasks for each thread even out what else the machine does.
constexpr int64_t kTaskBytes = 256 * 1024;
constexpr int64_t kMinTasks = 8;

// Many rows: a task is kTileColumns rows of weights and so many rows of activations (a multiple of both tile heights).
constexpr int64_t kTaskRows = 192;
static_assert(kTaskRows % kTileRows == 0 && kTaskRows % kDenseRows == 0);

// The rows of one matrix of weights, cut into runs of `length`.
struct Pieces {
  int64_t n;
  int64_t length;

  int64_t count() const { return (n + length - 1) / length; }
  int64_t first(int64_t index) const { return index * length; }
  int64_t size(int64_t index) const { return std::min(length, n - first(index)); }
};

Pieces long_pieces(int64_t n, int64_t row_bytes) {
  const int64_t by_count = (n + kMinTasks - 1) / kMinTasks;
  const int64_t by_bytes = std::max<int64_t>(kTaskBytes / row_bytes, 4);
  return {n, (std::min(by_count, by_bytes) + 3) / 4 * 4};
}

float* second_result(int64_t count) {
  thread_local std::vector<Line> memory;
  return scratch<float>(memory, count);
}

// One part of the output: rows [row, row + num_rows), columns [first, first + count).
struct Part {
  int64_t row;
  int64_t num_rows;
  int64_t first;
  int64_t count;
};

// Runs work(product, part, y, stride) for every part of every product; y points at the part's corner.
template <typename AnyProduct, typename Work>
void for_each_part(const Context& context, int64_t rows, const std::vector<AnyProduct>& products,
                   const std::vector<Pieces>& pieces, bool tiled, bool gated, const Work& work) {
  const size_t num_outputs = gated ? 1 : products.size();
  const int64_t row_parts = tiled ? (rows + kTaskRows - 1) / kTaskRows : 1;
  std::vector<int64_t> ends;  // of the tasks of each output
  int64_t num_tasks = 0;
  for (size_t i = 0; i < num_outputs; ++i) ends.push_back(num_tasks += pieces[i].count() * row_parts);
  context.parallel(num_tasks, [&](int64_t task) {
    const size_t output = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), task) - ends.begin());
    const int64_t local = output ? task - ends[output - 1] : task;
    const Pieces& cut = pieces[output];
    const int64_t row = local / cut.count() * kTaskRows;
    const int64_t piece = local % cut.count();
    const int64_t n = cut.n;
    const Part part = {row, tiled ? std::min(kTaskRows, rows - row) : rows, cut.first(piece), cut.size(piece)};
    float* y = products[output].y + part.row * n + part.first;
    work(products[output], part, y, n);
    if (!gated) return;
    float* up = second_result(part.num_rows * part.count);
    work(products[1], part, up, part.count);
    for (int64_t r = 0; r < part.num_rows; ++r) path().silu_times(y + r * n, up + r * part.count, part.count);
  });
}

void add_bias(const float* bias, const Part& part, float* y, int64_t stride) {
  for (int64_t r = 0; r < part.num_rows; ++r) {
    for (int64_t i = 0; i < part.count; ++i) y[r * stride + i] += bias[i];
  }
}

}  // namespace

const float* dense_panels(const Context& context, int64_t k, const float* a, int64_t rows) {
  thread_local std::vector<Line> memory;
  const int64_t num_panels = (rows + kDenseRows - 1) / kDenseRows;
  auto* panels = scratch<float>(memory, num_panels * k * kDenseRows);
  context.parallel(num_panels, [&](int64_t index) {
    float* out = panels + index * k * kDenseRows;
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t r = 0; r < kDenseRows; ++r) {  // rows that are not there repeat the last one
        out[i * kDenseRows + r] = a[std::min(index * kDenseRows + r, rows - 1) * k + i];
      }
    }
  });
  return panels;
}

void multiply(const Context& context, const Layout& layout, const float* a, int64_t rows,
              const std::vector<Product>& products, bool gated) {
  if (rows == 0) return;
  const Activations activations(context, layout, a, rows, products[0].w.zeros == nullptr);
  const bool many = activations.many();
  std::vector<Pieces> pieces;
  for (const Product& product : products) {
    pieces.push_back(many ? Pieces{product.w.n, kTileColumns} : long_pieces(product.w.n, layout.row_bytes()));
  }
  for_each_part(context, rows, products, pieces, many, gated,
                [&](const Product& product, const Part& part, float* y, int64_t stride) {
                  if (many) {
                    thread_local std::vector<Line> memory;
                    path().tiles(layout, activations.panels(part.row), part.num_rows, product.w, part.first, part.count,
                                 scratch<uint8_t>(memory, unpacked_bytes(layout)), y, stride);
                    return;
                  }
                  for (int64_t r = 0; r < part.num_rows; ++r) {
                    path().dot(layout, activations.records(part.row + r), product.w, part.first, part.count,
                               y + r * stride);
                  }
                });
}

void multiply(const Context& context, int64_t k, const float* a, int64_t rows, const std::vector<DenseProduct>& products,
              bool gated) {
  if (rows == 0) return;
  const bool many = rows >= kManyDenseRows && path().dense_tiles != nullptr;
  const float* panels = many ? dense_panels(context, k, a, rows) : nullptr;
  std::vector<Pieces> pieces;
  for (const DenseProduct& product : products) {
    pieces.push_back(many ? Pieces{product.n, kTileColumns} : long_pieces(product.n, k * int64_t{sizeof(float)}));
  }
  for_each_part(context, rows, products, pieces, many, gated,
                [&](const DenseProduct& product, const Part& part, float* y, int64_t stride) {
                  const float* w = product.w + part.first * k;
                  if (many) {
                    thread_local std::vector<Line> memory;
                    path().dense_tiles(k, panels + part.row * k, part.num_rows, w, part.count,
                                       scratch<float>(memory, kDenseScratch), y, stride);
                  } else {
                    path().dense_dot(k, a + part.row * k, part.num_rows, w, part.count, y, stride);
                  }
                  if (product.bias != nullptr) add_bias(product.bias + part.first, part, y, stride);
                });
}

}  // namespace blockexport
