#pragma once
#include <string>
#include <vector>

#include "runtime/format/xsr_file.h"

namespace xsr::test {

/// The tensors of a model, to be written again; they lie in it.
inline std::vector<TensorSource> tensor_sources(const XsrFile& file) {
  std::vector<TensorSource> sources;
  for (const TensorView& t : file.tensors())
    sources.push_back({std::string(t.name), t.dtype, t.layout, t.dims, t.data, t.scales});
  return sources;
}

}  // namespace xsr::test
