// What an operator sees of ONNX Runtime: its attributes, its tensors, and the session's own threads.
#pragma once
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace blockexport {

// Input or attributes that an operator cannot take; becomes the error of the session.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Shape = std::vector<int64_t>;

[[noreturn]] void refuse(const char* op, const std::string& what);
std::string text_of(const Shape& shape);

struct Tensor {
  ort::Value* value = nullptr;  // null: an optional input that is not given
  int type = ort::kAny;
  Shape shape;
  void* data = nullptr;

  explicit operator bool() const { return value != nullptr; }
  int64_t size() const;
  const float* floats() const { return static_cast<const float*>(data); }
  const uint8_t* bytes() const { return static_cast<const uint8_t*>(data); }
};

class Attributes {
 public:
  Attributes(const ort::Api* api, const ort::KernelInfo* info) : api_(api), info_(info) {}
  int64_t integer(const char* op, const char* name) const;
  int64_t integer_or(const char* name, int64_t otherwise) const;
  // False, and *out as it was: the attribute is not there.
  bool real(const char* name, float* out) const;

 private:
  const ort::Api* api_;
  const ort::KernelInfo* info_;
};

class Context {
 public:
  Context(const ort::Api* api, ort::KernelContext* context) : api_(api), context_(context) {}
  size_t num_inputs() const;
  size_t num_outputs() const;
  Tensor input(size_t index) const;
  float* output(size_t index, const Shape& shape) const;

  // Runs task(0) ... task(count - 1) on the threads of the session; with one thread, here.
  template <typename Task>
  void parallel(int64_t count, const Task& task) const {
    if (count == 1) return task(int64_t{0});
    run(count, [](void* data, size_t index) { (*static_cast<const Task*>(data))(static_cast<int64_t>(index)); },
        const_cast<Task*>(&task));
  }

 private:
  void run(int64_t count, void (*call)(void*, size_t), void* data) const;
  void check(ort::Status* status) const;

  const ort::Api* api_;
  ort::KernelContext* context_;
};

struct Kernel {
  virtual ~Kernel() = default;
  virtual void compute(const Context& context) const = 0;
};

struct Port {
  int type;
  int arity = ort::kRequired;
};

struct Operator {
  const char* name;
  std::vector<Port> inputs;
  std::vector<Port> outputs;
  std::unique_ptr<Kernel> (*create)(const Attributes& attributes);
};

const std::vector<Operator>& operators();  // ops.cc

}  // namespace blockexport
