#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "converter/checkpoint.h"
#include "training/parameters.h"

namespace xsr::training {

/// What a checkpoint says beside its tensors: text under names (docs/CHECKPOINT.md).
using CheckpointFields = std::map<std::string, std::string>;

/// A flat buffer and what its tensors' names begin with: "value.", "moment1.", "moment2.",
/// "max_moment2.".
struct CheckpointBuffer {
  std::string prefix;
  const FlatBuffer* buffer = nullptr;
};

/// Writes one safetensors file with every parameter of every buffer, the fields and a checksum of
/// all its bytes. path.partial is flushed to the disk before it takes the name: at any time, and on
/// a full disk, path is the old checkpoint or the new one, whole. The bytes depend on the arguments
/// alone. Throws Error(IO).
void write_checkpoint(const std::string& path, const ParameterTable& table,
                      const std::vector<CheckpointBuffer>& buffers, const CheckpointFields& fields);

/// A checkpoint of xsr-train, mapped and checked.
class TrainingCheckpoint {
 public:
  /// Throws Error(IO; BAD_FILE: damaged, or no checkpoint of xsr-train).
  explicit TrainingCheckpoint(const std::string& path);

  /// True when the file at path is a checkpoint of xsr-train, damaged or not. Throws Error(IO).
  static bool recognize(const std::string& path);

  const std::string& path() const { return checkpoint_->name(); }
  bool has(const std::string& field) const { return fields().count(field) > 0; }
  /// Throws Error(BAD_FILE) when there is no such field.
  const std::string& field(const std::string& name) const;
  int64_t integer(const std::string& name) const;
  /// Of JSON: an object of text; a list of such. Throw Error(BAD_FILE) where the field is another.
  CheckpointFields object(const std::string& name) const;
  std::vector<CheckpointFields> objects(const std::string& name) const;
  const CheckpointFields& fields() const { return checkpoint_->metadata(); }
  /// Throws Error(BAD_FILE) naming a tensor that is missing or has another shape.
  void read(const ParameterTable& table, const std::string& prefix, FlatBuffer& buffer) const;

 private:
  std::unique_ptr<Checkpoint> checkpoint_;
};

}  // namespace xsr::training
