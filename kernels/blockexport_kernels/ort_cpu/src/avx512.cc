// The path for AVX-512 with VNNI.
#include "avx512.h"

#include "elementwise.h"

namespace blockexport {

const Path kAvx512 = {"avx512",           quantise,           avx512::dot, avx512::tiles,
                      avx512::dense_dot, avx512::dense_tiles, silu_times};

}  // namespace blockexport
