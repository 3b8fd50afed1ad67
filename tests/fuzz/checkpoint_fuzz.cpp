// Edits of a checkpoint of xsr-train (edits.h): it is refused with an Error, or all of it can be
// read. The first bit of the input says whether the header's size and the checksum are made right
// behind the edits; where they are not, no edit may pass.
#include <fmt/format.h>
#include <xxhash.h>

#include <string>

#include "runtime/error.h"
#include "runtime/format/mapped_file.h"
#include "tests/fuzz/edits.h"
#include "tests/support/temp_folder.h"
#include "training/checkpoint.h"

namespace {

using namespace xsr::training;

constexpr const char* kPrefixes[] = {"value.", "moment1.", "moment2.", "max_moment2."};

struct Sound {
  Sound() {
    xsr::ModelConfig config;
    config.num_layers = 1;
    config.hidden_size = config.embedding_size = 2;
    config.num_heads = 1;
    config.intermediate_size = 3;
    config.vocab_size = 4;
    config.num_positions = 3;
    config.max_seq_len = 2;
    table = std::make_unique<ParameterTable>(config);
    buffer = std::make_unique<FlatBuffer>(table->size());
    for (int64_t i = 0; i < table->size(); ++i) buffer->data()[i] = static_cast<float>(i);
    const xsr::test::TempFolder folder;
    write_checkpoint(folder / "c", *table, {{"value.", buffer.get()}, {"moment1.", buffer.get()}},
                     {{"step", "60"}, {"config", R"({"seed":"3"})"}, {"best_score", "0x1p-3"}});
    bytes = xsr::read_whole_file(folder / "c");
  }
  std::unique_ptr<ParameterTable> table;
  std::unique_ptr<FlatBuffer> buffer;
  std::string bytes;
};

/// grown: by how many bytes the header is longer than the sound one, for all edits are taken to be
/// in it.
void seal(std::string& file, size_t grown) {
  if (file.size() < sizeof(uint64_t)) return;
  uint64_t header_size;
  std::memcpy(&header_size, file.data(), sizeof header_size);
  header_size += grown;
  std::memcpy(file.data(), &header_size, sizeof header_size);
  constexpr std::string_view kKey = "\"checksum\":\"", kZeros = "0000000000000000";
  const size_t key = file.find(kKey);
  if (key == file.npos || file.size() - key < kKey.size() + kZeros.size()) return;
  const size_t at = key + kKey.size();
  file.replace(at, kZeros.size(), kZeros);
  file.replace(at, kZeros.size(), fmt::format("{:016x}", XXH3_64bits(file.data(), file.size())));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t size) {
  static const Sound sound;
  static const xsr::fuzz::MemoryFile memory;
  if (size == 0) return 0;
  std::string file = xsr::fuzz::edited(sound.bytes, input + 1, size - 1);
  if (input[0] & 1) seal(file, file.size() - sound.bytes.size());
  memory.write(file);
  try {
    const TrainingCheckpoint checkpoint(memory.path());
    xsr::fuzz::require(input[0] & 1 || file == sound.bytes);
    for (const auto& [name, text] : checkpoint.fields()) {
      try {
        xsr::fuzz::require(checkpoint.has(name) && checkpoint.integer(name) >= 0);
      } catch (const xsr::Error&) {
      }
      try {
        checkpoint.object(name);
      } catch (const xsr::Error&) {
      }
      try {
        checkpoint.objects(name);
      } catch (const xsr::Error&) {
      }
    }
    for (const char* prefix : kPrefixes) {
      try {
        FlatBuffer read(sound.table->size());
        checkpoint.read(*sound.table, prefix, read);
      } catch (const xsr::Error&) {
      }
    }
  } catch (const xsr::Error& error) {
    xsr::fuzz::require(file != sound.bytes && error.status() != XSR_STATUS_IO);
  }
  return 0;
}
