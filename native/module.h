// Parts of the Python module cellmd._native that have sources of their own.
#pragma once

#include <nanobind/nanobind.h>

namespace cellmd {

void bind_encode(nanobind::module_&);

}  // namespace cellmd
