// Registration of the operators with ONNX Runtime, and the calls behind ort.h.
#include "ort.h"

#include <exception>

#include "paths.h"

namespace blockexport {
namespace {

constexpr const char* kDomain = "blockexport.cpu";

struct Registered : ort::CustomOp {
  const Operator* op;
};

struct Instance {
  const ort::Api* api;
  std::unique_ptr<Kernel> kernel;
};

const Operator& of(const ort::CustomOp* op) { return *static_cast<const Registered*>(op)->op; }

// No exception may cross the C interface.
template <typename Body>
ort::Status* guarded(const ort::Api* api, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return ort::CreateStatus::call(api, ort::kInvalidArgument, error.what());
  }
}

ort::Status* ORT_CALL create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info, void** out) {
  return guarded(api, [&] { *out = new Instance{api, of(op).create(Attributes(api, info))}; });
}

ort::Status* ORT_CALL compute(void* instance, ort::KernelContext* context) {
  const auto& self = *static_cast<const Instance*>(instance);
  return guarded(self.api, [&] { self.kernel->compute(Context(self.api, context)); });
}

Registered describe(const Operator& op) {
  Registered out{};
  out.op = &op;
  out.version = ort::kApiVersion;
  out.GetName = [](const ort::CustomOp* self) { return of(self).name; };
  out.GetExecutionProviderType = [](const ort::CustomOp*) { return "CPUExecutionProvider"; };
  out.GetInputType = [](const ort::CustomOp* self, size_t index) { return of(self).inputs[index].type; };
  out.GetInputTypeCount = [](const ort::CustomOp* self) { return of(self).inputs.size(); };
  out.GetOutputType = [](const ort::CustomOp* self, size_t index) { return of(self).outputs[index].type; };
  out.GetOutputTypeCount = [](const ort::CustomOp* self) { return of(self).outputs.size(); };
  out.KernelDestroy = [](void* instance) { delete static_cast<Instance*>(instance); };
  out.GetInputCharacteristic = [](const ort::CustomOp* self, size_t index) { return of(self).inputs[index].arity; };
  out.GetOutputCharacteristic = [](const ort::CustomOp* self, size_t index) { return of(self).outputs[index].arity; };
  out.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return 0; };  // OrtMemTypeDefault
  out.GetVariadicInputMinArity = [](const ort::CustomOp*) { return 1; };
  out.GetVariadicInputHomogeneity = [](const ort::CustomOp*) { return 0; };
  out.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
  out.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 1; };
  out.CreateKernelV2 = create;
  out.KernelComputeV2 = compute;
  out.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  out.GetEndVersion = [](const ort::CustomOp*) { return 1; };
  return out;
}

// One domain for the life of the library: sessions keep pointers into it.
ort::Status* domain(const ort::Api* api, ort::CustomOpDomain** out) {
  static std::vector<Registered> registered;
  static ort::CustomOpDomain* made = nullptr;
  static ort::Status* failure = [api]() -> ort::Status* {
    for (const Operator& op : operators()) registered.push_back(describe(op));
    if (ort::Status* status = ort::CreateCustomOpDomain::call(api, kDomain, &made)) return status;
    for (const Registered& op : registered) {
      if (ort::Status* status = ort::CustomOpDomain_Add::call(api, made, &op)) return status;
    }
    return nullptr;
  }();
  *out = made;
  return failure;
}

}  // namespace

void refuse(const char* op, const std::string& what) { throw Refused(std::string(kDomain) + "::" + op + ": " + what); }

std::string text_of(const Shape& shape) {
  std::string out = "(";
  for (size_t axis = 0; axis < shape.size(); ++axis) out += (axis ? ", " : "") + std::to_string(shape[axis]);
  return out + ")";
}

int64_t Tensor::size() const {
  int64_t out = 1;
  for (int64_t length : shape) out *= length;
  return out;
}

int64_t Attributes::integer(const char* op, const char* name) const {
  int64_t out = 0;
  if (ort::Status* status = ort::KernelInfoGetAttribute_int64::call(api_, info_, name, &out)) {
    ort::ReleaseStatus::call(api_, status);
    refuse(op, std::string("the integer attribute '") + name + "' is missing");
  }
  return out;
}

int64_t Attributes::integer_or(const char* name, int64_t otherwise) const {
  int64_t out = 0;
  ort::Status* status = ort::KernelInfoGetAttribute_int64::call(api_, info_, name, &out);
  if (status == nullptr) return out;
  ort::ReleaseStatus::call(api_, status);
  return otherwise;
}

bool Attributes::real(const char* name, float* out) const {
  float found = 0.0f;
  ort::Status* status = ort::KernelInfoGetAttribute_float::call(api_, info_, name, &found);
  if (status != nullptr) {
    ort::ReleaseStatus::call(api_, status);
    return false;
  }
  *out = found;
  return true;
}

void Context::check(ort::Status* status) const {
  if (status == nullptr) return;
  const std::string message = ort::GetErrorMessage::call(api_, status);
  ort::ReleaseStatus::call(api_, status);
  throw std::runtime_error(message);
}

size_t Context::num_inputs() const {
  size_t out = 0;
  check(ort::KernelContext_GetInputCount::call(api_, context_, &out));
  return out;
}

size_t Context::num_outputs() const {
  size_t out = 0;
  check(ort::KernelContext_GetOutputCount::call(api_, context_, &out));
  return out;
}

Tensor Context::input(size_t index) const {
  Tensor out;
  if (index >= num_inputs()) return out;
  const ort::Value* value = nullptr;
  check(ort::KernelContext_GetInput::call(api_, context_, index, &value));
  if (value == nullptr) return out;
  out.value = const_cast<ort::Value*>(value);
  ort::TensorInfo* info = nullptr;
  check(ort::GetTensorTypeAndShape::call(api_, value, &info));
  size_t rank = 0;
  check(ort::GetDimensionsCount::call(api_, info, &rank));
  out.shape.resize(rank);
  check(ort::GetDimensions::call(api_, info, out.shape.data(), rank));
  check(ort::GetTensorElementType::call(api_, info, &out.type));
  ort::ReleaseTensorTypeAndShapeInfo::call(api_, info);
  check(ort::GetTensorMutableData::call(api_, out.value, &out.data));
  return out;
}

float* Context::output(size_t index, const Shape& shape) const {
  ort::Value* value = nullptr;
  check(ort::KernelContext_GetOutput::call(api_, context_, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(ort::GetTensorMutableData::call(api_, value, &data));
  return static_cast<float*>(data);
}

void Context::run(int64_t count, void (*call)(void*, size_t), void* data) const {
  check(ort::KernelContext_ParallelFor::call(api_, context_, call, static_cast<size_t>(count), 0, data));
}

}  // namespace blockexport

BLOCKEXPORT_EXPORT ort::Status* ORT_CALL RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    const ort::Api* oldest = base->GetApi(1);
    return ort::CreateStatus::call(oldest, ort::kInvalidArgument,
                                   "blockexport.cpu needs ONNX Runtime 1.17 or later: update onnxruntime");
  }
  if (const char* problem = blockexport::path_problem()) {
    return ort::CreateStatus::call(api, ort::kInvalidArgument, problem);
  }
  ort::CustomOpDomain* domain = nullptr;
  if (ort::Status* status = blockexport::domain(api, &domain)) return status;
  return ort::AddCustomOpDomain::call(api, options, domain);
}

BLOCKEXPORT_EXPORT const char* blockexport_cpu_path() { return blockexport::path().name; }
