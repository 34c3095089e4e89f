// The part of ONNX Runtime's C interface that these operators use. The wheel ships no header, and the interface is
// append-only: a function keeps its slot in OrtApi for ever, so a slot number is all that is needed to call it.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define ORT_CALL __stdcall
#define BLOCKEXPORT_EXPORT extern "C" __declspec(dllexport)
#else
#define ORT_CALL
#define BLOCKEXPORT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace ort {

constexpr uint32_t kApiVersion = 17;  // the first one with KernelContext_ParallelFor

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;  // OrtTensorTypeAndShapeInfo

struct Api {
  const void* slots[275];  // as many as are used here
};

struct ApiBase {
  const Api*(ORT_CALL* GetApi)(uint32_t version);
  const char*(ORT_CALL* GetVersionString)();
};

// A slot of OrtApi: its number, what it returns, what it takes.
template <size_t kIndex, typename Result, typename... Args>
struct Slot {
  static Result call(const Api* api, Args... args) {
    return reinterpret_cast<Result(ORT_CALL*)(Args...)>(const_cast<void*>(api->slots[kIndex]))(args...);
  }
};

using CreateStatus = Slot<0, Status*, int, const char*>;
using GetErrorMessage = Slot<2, const char*, const Status*>;
using CreateCustomOpDomain = Slot<26, Status*, const char*, CustomOpDomain**>;
using CustomOpDomain_Add = Slot<27, Status*, CustomOpDomain*, const struct CustomOp*>;
using AddCustomOpDomain = Slot<28, Status*, SessionOptions*, CustomOpDomain*>;
using GetTensorMutableData = Slot<51, Status*, Value*, void**>;
using GetTensorElementType = Slot<60, Status*, const TensorInfo*, int*>;
using GetDimensionsCount = Slot<61, Status*, const TensorInfo*, size_t*>;
using GetDimensions = Slot<62, Status*, const TensorInfo*, int64_t*, size_t>;
using GetTensorTypeAndShape = Slot<65, Status*, const Value*, TensorInfo**>;
using KernelInfoGetAttribute_float = Slot<85, Status*, const KernelInfo*, const char*, float*>;
using KernelInfoGetAttribute_int64 = Slot<86, Status*, const KernelInfo*, const char*, int64_t*>;
using KernelContext_GetInputCount = Slot<88, Status*, const KernelContext*, size_t*>;
using KernelContext_GetOutputCount = Slot<89, Status*, const KernelContext*, size_t*>;
using KernelContext_GetInput = Slot<90, Status*, const KernelContext*, size_t, const Value**>;
using KernelContext_GetOutput = Slot<91, Status*, KernelContext*, size_t, const int64_t*, size_t, Value**>;
using ReleaseStatus = Slot<93, void, Status*>;
using ReleaseTensorTypeAndShapeInfo = Slot<99, void, TensorInfo*>;
using KernelContext_ParallelFor =
    Slot<274, Status*, const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*>;

constexpr int kInvalidArgument = 2;  // OrtErrorCode

enum ElementType : int { kAny = 0, kFloat = 1, kUint8 = 2, kInt32 = 6, kInt64 = 7, kBfloat16 = 16 };
enum Arity : int { kRequired = 0, kOptional = 1, kVariadic = 2 };

// OrtCustomOp as of version 17, in its order. ONNX Runtime reads `version` to know where it ends.
struct CustomOp {
  uint32_t version;
  void*(ORT_CALL* CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char*(ORT_CALL* GetName)(const CustomOp*);
  const char*(ORT_CALL* GetExecutionProviderType)(const CustomOp*);
  int(ORT_CALL* GetInputType)(const CustomOp*, size_t);
  size_t(ORT_CALL* GetInputTypeCount)(const CustomOp*);
  int(ORT_CALL* GetOutputType)(const CustomOp*, size_t);
  size_t(ORT_CALL* GetOutputTypeCount)(const CustomOp*);
  void(ORT_CALL* KernelCompute)(void*, KernelContext*);
  void(ORT_CALL* KernelDestroy)(void*);
  int(ORT_CALL* GetInputCharacteristic)(const CustomOp*, size_t);
  int(ORT_CALL* GetOutputCharacteristic)(const CustomOp*, size_t);
  int(ORT_CALL* GetInputMemoryType)(const CustomOp*, size_t);
  int(ORT_CALL* GetVariadicInputMinArity)(const CustomOp*);
  int(ORT_CALL* GetVariadicInputHomogeneity)(const CustomOp*);
  int(ORT_CALL* GetVariadicOutputMinArity)(const CustomOp*);
  int(ORT_CALL* GetVariadicOutputHomogeneity)(const CustomOp*);
  Status*(ORT_CALL* CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status*(ORT_CALL* KernelComputeV2)(void*, KernelContext*);
  Status*(ORT_CALL* InferOutputShapeFn)(const CustomOp*, void*);
  int(ORT_CALL* GetStartVersion)(const CustomOp*);
  int(ORT_CALL* GetEndVersion)(const CustomOp*);
};

}  // namespace ort
