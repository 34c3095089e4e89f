// Mixtures of experts as operators: expert_ops.cc says what they take, expert_groups.h which expert sees which rows,
// expert_products.h how rows are multiplied.
#pragma once
#include "ort.h"

namespace blockexport {

constexpr const char* kGatedExperts = "GatedExperts";
constexpr const char* kGatedExpertsNBits = "GatedExpertsNBits";

std::unique_ptr<Kernel> make_gated_experts(const Attributes& attributes);
std::unique_ptr<Kernel> make_gated_experts_nbits(const Attributes& attributes);

}  // namespace blockexport
