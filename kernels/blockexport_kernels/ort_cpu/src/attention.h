// The operator that attends over a cache.
#pragma once
#include "ort.h"

namespace blockexport {

Operator cached_attention();

}  // namespace blockexport
