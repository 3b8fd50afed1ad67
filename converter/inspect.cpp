#include "converter/inspect.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "converter/checkpoint.h"
#include "converter/convert.h"
#include "converter/sha256.h"
#include "kernels/storage.h"
#include "runtime/format/xsr_file.h"

namespace xsr {
namespace {

/// Control characters would let a file's text act on the terminal.
std::string one_line(std::string_view text, size_t limit = 100) {
  std::string out;
  for (const char c : text.substr(0, limit))
    out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  return text.size() > limit ? out + "..." : out;
}

std::string inspect_xsr(const std::string& path) {
  const auto file = XsrFile::open(path);
  const ModelConfig& c = file->config();
  std::string out;
  const auto line = [&](const char* key, const auto& value) {
    fmt::format_to(std::back_inserter(out), "{:<20} {}\n", key, value);
  };
  line("file", path);
  line("format", "xsr, version 1");
  line("size", fmt::format("{} bytes", file->size()));
  line("header checksum", fmt::format("{:016x}", file->header_checksum()));
  line("family", to_string(c.family));
  line("num_layers", c.num_layers);
  line("hidden_size", c.hidden_size);
  line("num_heads", c.num_heads);
  line("intermediate_size", c.intermediate_size);
  line("vocab_size", c.vocab_size);
  line("num_positions", c.num_positions);
  line("position_offset", c.position_offset);
  line("num_token_types", c.num_token_types);
  line("max_seq_len", c.max_seq_len);
  line("embedding_size", c.embedding_size);
  line("activation", to_string(c.activation));
  line("norm_placement", to_string(c.norm_placement));
  line("layer_norm_eps", c.layer_norm_eps);
  line("pooling", to_string(c.pooling));
  line("pooler", c.has_pooler ? to_string(c.pooler_activation) : "no");
  line("normalize", c.normalize);
  line("lowercase", c.lowercase);
  line("tokenizer", fmt::format("{}, {} bytes", to_string(c.tokenizer), file->tokenizer().size()));
  line("tokenizer tables", fmt::format("{} bytes", file->tokenizer_tables().size()));
  line("special ids",
       fmt::format("pad {}, unk {}, mask {}, cls {}{}, sep {}{}", c.pad_id, c.unk_id, c.mask_id,
                   c.cls_id, c.add_cls ? " (added)" : "", c.sep_id, c.add_sep ? " (added)" : ""));
  line("provenance", one_line(file->provenance(), 4000));
  line("tensors", file->tensors().size());
  for (const TensorView& t : file->tensors()) {
    fmt::format_to(std::back_inserter(out),
                   "  {:<34} {:<5} {:<10} {:<16} {:>12} bytes at {:>12}  {:016x}\n", t.name,
                   to_string(t.dtype), to_string(t.layout), shape_string(t.dims), t.size, t.offset,
                   t.checksum);
  }
  return out;
}

std::string inspect_checkpoint(const std::string& path) {
  const auto checkpoint = Checkpoint::open(path);
  std::string out;
  const auto line = [&](const char* key, const auto& value) {
    fmt::format_to(std::back_inserter(out), "{:<20} {}\n", key, value);
  };
  line("file", path);
  line("format", checkpoint->format());
  line("size", fmt::format("{} bytes", checkpoint->file().size()));
  line("sha256", sha256_hex(checkpoint->file()));
  for (const auto& [key, value] : checkpoint->metadata()) {
    line("metadata", fmt::format("{} = {}", one_line(key), one_line(value)));
  }
  const auto list = [&](const char* title, std::span<const CheckpointTensor> tensors) {
    line(title, tensors.size());
    size_t width = 0;
    for (const auto& t : tensors) width = std::max(width, t.name.size());
    for (const auto& t : tensors) {
      const auto bytes = t.to_bytes();
      fmt::format_to(std::back_inserter(out), "  {:<{}} {:<5} {:<16} {:>12} bytes  {:016x}\n",
                     t.name, width, to_string(t.dtype), shape_string(t.shape), bytes.size(),
                     XXH3_64bits(bytes.data(), bytes.size()));
    }
  };
  list("tensors", checkpoint->tensors());
  if (!checkpoint->outside().empty()) list("beside the model", checkpoint->outside());
  return out;
}

}  // namespace

std::string inspect_file(const std::string& path) {
  return is_xsr_file(path) ? inspect_xsr(path) : inspect_checkpoint(path);
}

std::string check_xsr_file(const std::string& path) {
  const auto file = XsrFile::open(path);
  file->verify();
  const auto finite = [&](const TensorView& t, float value, uint64_t element) {
    if (std::isfinite(value)) return;
    throw Error(
        XSR_STATUS_BAD_FILE,
        fmt::format("{}: offset {}: {} has {} at element {} of its data, expected finite weights",
                    path, t.offset, t.name, std::isnan(value) ? "NaN" : "infinity", element));
  };
  for (const TensorView& t : file->tensors()) {
    if (t.dtype == DType::kI8) {
      for (uint64_t n = 0; n < t.dims[0]; ++n) finite(t, t.scales[n], n);
      continue;
    }
    const uint64_t count = t.size / dtype_size(t.dtype);
    for (uint64_t i = 0; i < count; ++i)
      finite(t, kernels::load_storage(t.data, t.dtype, static_cast<int64_t>(i)), i);
  }
  return fmt::format("{}: {} tensors, {} bytes: checksums hold, all weights are finite\n", path,
                     file->tensors().size(), file->size());
}

}  // namespace xsr
