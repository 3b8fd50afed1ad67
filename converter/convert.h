#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "converter/checkpoint.h"
#include "converter/family.h"
#include "runtime/format/xsr_file.h"

namespace xsr {

struct ConvertOptions {
  Family family = Family::kXsr;
  std::optional<int32_t> num_heads;      // default: hidden_size / 64 where that is whole
  std::optional<Activation> activation;  // the others: the family's default
  std::optional<bool> lowercase;
  std::optional<Pooling> pooling;
  std::optional<double> layer_norm_eps;
  DType dtype = DType::kF32;  // of weight matrices and embedding tables: kF32, kBF16, kF16 or kI8
  std::string prefix;  // only tensors whose name begins so are looked at, and it is taken off
  std::string
      sentencepiece;  // the bytes of a SentencePiece model; empty: the model takes token ids only
  std::string sentencepiece_name;  // its file name, for messages and provenance
  std::string license;             // the terms the weights come under, as text
};

/// A model ready to be written; owns its tensors.
struct ConvertedModel {
  struct Tensor {
    std::string name;
    DType dtype = DType::kF32;
    Layout layout = Layout::kRowMajor;
    std::vector<uint64_t> dims;
    std::vector<unsigned char> data;
    std::vector<float> scales;  // i8 only: [dims[0]]
  };
  ModelConfig config;
  std::vector<Tensor> tensors;
  std::string tokenizer;
  std::string provenance;            // JSON
  std::vector<std::string> dropped;  // names of tensors that only training needs

  /// Views of the tensors for write_xsr_file; they live as long as this object stays unchanged.
  std::vector<TensorSource> sources() const;
};

/// A tensor of the .xsr file from its values in row-major order: rounded to weight_dtype where the
/// rule says weight, else f32, and packed as its layout wants.
ConvertedModel::Tensor pack_tensor(const TensorRule& rule, std::vector<uint64_t> dims,
                                   std::span<const float> values, DType weight_dtype);

/// Renames, stacks, rounds and packs the tensors of a checkpoint as the family's table says.
/// Deterministic. Throws Error(BAD_FILE) that names what is missing, unexpected, of the wrong
/// shape, not tied though it should be, or not finite (NaN, infinity, or beyond the range of
/// dtype), and Error(INVALID_ARGUMENT, UNSUPPORTED) for options that do not fit.
ConvertedModel convert_checkpoint(const Checkpoint& checkpoint, const ConvertOptions& options);

/// A tensor of a .xsr file, f32, f16 or bf16, as row-major f32.
std::vector<float> row_major_values(const TensorView& tensor);

/// True where the file begins as a .xsr file does. Throws Error(IO).
bool is_xsr_file(const std::string& path);

/// A .xsr file that is made into others, of another dtype.
class FinishedModel {
 public:
  /// Verifies the file's checksums and hashes it. Throws Error as XsrFile and bind_weights do.
  explicit FinishedModel(const std::string& path);

  /// The model, in f32, f16 or bf16, with its weight matrices and embedding tables rounded to
  /// `dtype` as convert_checkpoint would round the same values; configuration, tokenizer and the
  /// other tensors stay. Provenance stays too but for "quality", which was measured in another
  /// dtype; the list "retyped" gets an entry that names source and converter. Throws Error:
  /// UNSUPPORTED where the file is i8, whose rounding would only be rounded again; BAD_FILE for
  /// values that are not finite in `dtype` and for tensors that the family has not.
  ConvertedModel retyped(DType dtype) const;

 private:
  std::unique_ptr<XsrFile> file_;
  std::string sha256_;
};

}  // namespace xsr
