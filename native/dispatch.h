// Which table of kernels this process uses.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace cellmd {

// Tables that this machine can run, best first.
std::vector<const KernelTable*> available_kernels();

// The best table, or the one that the environment variable CELLMD_ISA names; throws std::runtime_error, naming those
// there are, if it names another.
const KernelTable& chosen_kernels();

}  // namespace cellmd
