// Products of one matrix of activations with several of weights: who does what on which thread.
#include "multiply.h"

#include <algorithm>
#include <thread>

#include "scratch.h"

namespace blockexport {
namespace {

// Few rows: a task is a run of rows of weights, long, because every new run costs the processor's prefetchers a start
// (measured on two threads with 0.4 MB of weights: 34 GB/s in 2 tasks, 24 in 8), and small enough to stay in the second
// cache for the next row of activations.
constexpr int64_t kTaskBytes = 512 * 1024;

int64_t min_tasks() {
  static const int64_t count = std::max<int64_t>(2, std::thread::hardware_concurrency());
  return count;
}

// Many rows: a task is kTileColumns or kDenseColumns rows of weights and so many rows of activations (a multiple of both
// tile heights).
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
  const int64_t by_count = (n + min_tasks() - 1) / min_tasks();
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

void add(const float* terms, int64_t terms_stride, const Part& part, float* y, int64_t stride) {
  for (int64_t r = 0; r < part.num_rows; ++r) {
    for (int64_t i = 0; i < part.count; ++i) y[r * stride + i] += terms[r * terms_stride + i];
  }
}

// Runs work(product, part, y, stride) for every part of every product, and what ends it; y points at the part's corner.
template <typename AnyProduct, typename Work>
void for_each_part(const Context& context, int64_t rows, const std::vector<AnyProduct>& products,
                   const std::vector<Pieces>& pieces, bool tiled, Ending ending, const float* residual,
                   const Work& work) {
  const bool gated = ending == Ending::kGated;
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
    if (ending == Ending::kResidual) add(residual + part.row * n + part.first, n, part, y, n);
    if (!gated) return;
    float* up = second_result(part.num_rows * part.count);
    work(products[1], part, up, part.count);
    for (int64_t r = 0; r < part.num_rows; ++r) path().silu_times(y + r * n, up + r * part.count, part.count);
  });
}

}  // namespace

const float* dense_panels(const Context& context, const Rows& rows) {
  thread_local std::vector<Line> memory;
  const int64_t num_panels = (rows.count + kDenseRows - 1) / kDenseRows;
  auto* panels = scratch<float>(memory, num_panels * rows.k * kDenseRows);
  // Half a panel a task: few rows are work for several threads too.
  context.parallel(num_panels * 2, [&](int64_t index) {
    thread_local std::vector<Line> normalised;
    auto* own = scratch<float>(normalised, rows.k);
    float* out = panels + index / 2 * rows.k * kDenseRows + index % 2 * 16;
    for (int64_t r = 0; r < 16; ++r) {  // of rows that are not there nobody reads the products
      const int64_t row = index * 16 + r;
      if (row >= rows.count && r > 0) break;
      const float* from = rows.row(std::min(row, rows.count - 1), own);
      for (int64_t i = 0; i < rows.k; ++i) out[i * kDenseRows + r] = from[i];
    }
  });
  return panels;
}

namespace {

// All rows in one piece of memory.
const float* dense_rows(const Rows& rows) {
  if (rows.norm == nullptr) return rows.data;
  thread_local std::vector<Line> memory;
  auto* out = scratch<float>(memory, rows.count * rows.k);
  for (int64_t row = 0; row < rows.count; ++row) rows.row(row, out + row * rows.k);
  return out;
}

template <typename Weight>
void multiply_dense(const Context& context, const DensePath<Weight>& loops, const Rows& rows,
                    const std::vector<DenseProduct>& products, Ending ending, const float* residual) {
  const int64_t k = rows.k;
  const bool many = rows.count >= kManyDenseRows && loops.tiles != nullptr;
  const float* a = many ? dense_panels(context, rows) : dense_rows(rows);
  std::vector<Pieces> pieces;
  for (const DenseProduct& product : products) {
    pieces.push_back(many ? Pieces{product.n, kDenseColumns} : long_pieces(product.n, k * int64_t{sizeof(Weight)}));
  }
  for_each_part(context, rows.count, products, pieces, many, ending, residual,
                [&](const DenseProduct& product, const Part& part, float* y, int64_t stride) {
                  const Weight* w = static_cast<const Weight*>(product.w) + part.first * k;
                  if (many) {
                    thread_local std::vector<Line> memory;
                    loops.tiles(k, a + part.row * k, part.num_rows, w, part.count,
                                scratch<float>(memory, dense_scratch(part.num_rows)), y, stride);
                  } else {
                    loops.dot(k, a + part.row * k, part.num_rows, w, part.count, y, stride);
                  }
                  if (product.bias != nullptr) add(product.bias + part.first, 0, part, y, stride);
                });
}

}  // namespace

void multiply(const Context& context, const Layout& layout, const Rows& rows, const std::vector<Product>& products,
              Ending ending, const float* residual) {
  if (rows.count == 0) return;
  const Activations activations(context, layout, rows, products[0].w.zeros == nullptr);
  const bool many = activations.many();
  std::vector<Pieces> pieces;
  for (const Product& product : products) {
    pieces.push_back(many ? Pieces{product.w.n, kTileColumns} : long_pieces(product.w.n, layout.row_bytes()));
  }
  for_each_part(context, rows.count, products, pieces, many, ending, residual,
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

void multiply(const Context& context, const Rows& rows, WeightType type, const std::vector<DenseProduct>& products,
              Ending ending, const float* residual) {
  if (rows.count == 0) return;
  if (type == WeightType::kBf16) {
    multiply_dense(context, path().bf16, rows, products, ending, residual);
  } else {
    multiply_dense(context, path().fp32, rows, products, ending, residual);
  }
}

}  // namespace blockexport
