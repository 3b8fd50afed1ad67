// Checkpoint readers, the architecture table of family xsr, the converter and its command line.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <sstream>

#include "converter/calibrate.h"
#include "converter/checkpoint.h"
#include "converter/convert.h"
#include "converter/family.h"
#include "converter/inspect.h"
#include "converter/quality.h"
#include "converter/sha256.h"
#include "kernels/gemm/gemm.h"
#include "kernels/storage.h"
#include "runtime/evaluation/retrieval.h"
#include "runtime/format/xsr_file.h"
#include "runtime/text/tokenizer_tables.h"
#include "tests/support/checkpoint_builder.h"
#include "tests/support/files.h"
#include "tests/support/packing.h"
#include "tests/support/paths.h"
#include "tests/support/xsr_checkpoint.h"
#include "xsr/xsr.hpp"

namespace xsr {
namespace {

using namespace test;
namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

const fs::path kSource = XSR_SOURCE_DIR;

/// The file of the shared reference material; empty when it is not there.
std::string shared_file(const std::string& name) {
  const fs::path path = shared_folder() / name;
  return fs::exists(path) ? path.string() : "";
}

#define SHARED_OR_SKIP(variable, name)            \
  const std::string variable = shared_file(name); \
  if (variable.empty())                           \
  GTEST_SKIP() << name << " is not under XSR_SHARED (" << shared_folder() << ")"

/// A folder of this test's own, removed at its end.
class Folder {
 public:
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "xsr-converter-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr)
      throw std::runtime_error("cannot make a temporary folder");
    path_ = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  std::string write(const std::string& name, const std::string& bytes) const {
    const fs::path path = path_ / name;
    std::ofstream(path, std::ios::binary) << bytes;
    return path.string();
  }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  fs::path path_;
};

template <typename Call>
std::string message_of(xsr_status status, Call call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), status) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

std::string floats(std::initializer_list<float> values) {
  return bytes_of(std::vector<float>(values));
}

// ---- readers ----

TEST(Safetensors, every_type_is_read) {
  const std::string file = safetensors_file(
      {{"f64", "F64", {2}, bytes_of(std::vector<double>{0.1, -1e300})},
       {"f32", "F32", {1, 2}, floats({1.5f, -0.0f})},
       {"f16", "F16", {4}, bytes_of(std::vector<uint16_t>{0x3c00, 0xc000, 0x0001, 0x7bff})},
       {"bf16", "BF16", {3}, bytes_of(std::vector<uint16_t>{0x3f80, 0xc000, 0x0001})},
       {"i64", "I64", {2}, bytes_of(std::vector<int64_t>{-1, int64_t{1} << 62})},
       {"i32", "I32", {}, bytes_of<int32_t>(-7)},
       {"i16", "I16", {1}, bytes_of<int16_t>(-300)},
       {"i8", "I8", {1}, std::string("\xff")},
       {"u8", "U8", {1}, std::string("\xff")},
       {"bool", "BOOL", {2}, std::string("\0\1", 2)},
       {"none", "F32", {0, 5}, ""}},
      R"({"config":"{\"a\": 1}"})");
  const auto c = Checkpoint::open_memory(as_span(file));
  EXPECT_EQ(c->format(), "safetensors");
  EXPECT_EQ(c->metadata().at("config"), "{\"a\": 1}");
  ASSERT_EQ(c->tensors().size(), 11u);
  EXPECT_EQ(c->find("f64")->to_f64(), (std::vector<double>{0.1, -1e300}));
  EXPECT_EQ(c->find("f32")->to_f32(), (std::vector<float>{1.5f, -0.0f}));
  EXPECT_TRUE(std::signbit(c->find("f32")->to_f32()[1]));
  EXPECT_EQ(c->find("f16")->to_f32(), (std::vector<float>{1.0f, -2.0f, 0x1p-24f, 65504.0f}));
  EXPECT_EQ(c->find("bf16")->to_f32(), (std::vector<float>{1.0f, -2.0f, 0x1p-133f}));
  EXPECT_EQ(c->find("i64")->to_i64(), (std::vector<int64_t>{-1, int64_t{1} << 62}));
  EXPECT_EQ(c->find("i32")->to_i64(), std::vector<int64_t>{-7});
  EXPECT_EQ(c->find("i16")->to_i64(), std::vector<int64_t>{-300});
  EXPECT_EQ(c->find("i8")->to_i64(), std::vector<int64_t>{-1});
  EXPECT_EQ(c->find("u8")->to_i64(), std::vector<int64_t>{255});
  EXPECT_EQ(c->find("bool")->to_i64(), (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(c->find("none")->numel, 0u);
  EXPECT_EQ(c->find("absent"), nullptr);
  EXPECT_THAT(message_of(XSR_STATUS_INVALID_ARGUMENT, [&] { c->find("f32")->to_i64(); }),
              HasSubstr("f32 is F32, expected integers"));
}

// A tensor without elements begins where the next one does, wherever the header names it.
TEST(Safetensors, an_empty_tensor_stands_before_or_behind_another) {
  for (const std::string header : {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                                   R"("b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                                   R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                   R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"}) {
    const std::string file =
        bytes_of(std::vector<uint64_t>{header.size()}) + header + std::string("\3\4");
    EXPECT_EQ(Checkpoint::open_memory(as_span(file))->find("b")->to_i64(),
              (std::vector<int64_t>{3, 4}));
  }
}

TEST(Safetensors, a_header_length_that_looks_like_a_pickle) {
  // 0x80 as the first byte of the file is also the first opcode of a pickle.
  std::string header = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}";
  header += std::string(0x80 - header.size() - 1, ' ') + "}";
  const std::string file = safetensors_file(header, floats({3}));
  ASSERT_EQ(file[0], '\x80');
  EXPECT_EQ(Checkpoint::open_memory(as_span(file))->find("a")->to_f32(), std::vector<float>{3});
}

const std::vector<float> kSix = {1, 2, 3, 4, 5, 6};

/// What a trainer saves: names behind "module.", a shared storage with an offset, a transposed
/// tensor, an optimiser.
std::string trainer_pickle(bool legacy) {
  return Pickle()
      .dict()
      .mark()
      .string("epoch")
      .integer(3)
      .string("model_name")
      .string("UGT")
      .string("best_loss")
      .real(0.5)
      .string("state_dict")
      .global("collections", "OrderedDict")
      .raw(")")
      .reduce()
      .mark()
      .string("module.whole")
      .tensor("FloatStorage", "0", 6, 0, {2, 3}, {3, 1}, legacy)
      .string("module.transposed")
      .tensor("FloatStorage", "0", 6, 0, {3, 2}, {1, 3}, legacy)
      .string("module.second_row")
      .tensor("FloatStorage", "0", 6, 3, {3}, {1}, legacy)
      .string("module.column")
      .tensor("FloatStorage", "0", 6, 1, {2, 1}, {3, 1}, legacy)
      .string("module.half")
      .tensor("HalfStorage", "1", 2, 0, {2}, {1}, legacy)
      .string("module.scalar")
      .tensor("LongStorage", "2", 1, 0, {}, {}, legacy)
      .set_items()
      .dict()
      .mark()
      .string("_metadata")
      .dict()
      .set_items()
      .raw("b")
      .string("optimizer")
      .dict()
      .mark()
      .string("state")
      .dict()
      .mark()
      .integer(0)
      .dict()
      .mark()
      .string("exp_avg")
      .global("torch._utils", "_rebuild_parameter")
      .mark()
      .tensor("FloatStorage", "0", 6, 0, {6}, {1}, legacy)
      .boolean(true)
      .global("collections", "OrderedDict")
      .raw(")")
      .reduce()
      .tuple()
      .reduce()
      .set_items()
      .set_items()
      .string("param_groups")
      .list()
      .mark()
      .dict()
      .mark()
      .string("lr")
      .real(1e-3)
      .string("params")
      .list()
      .mark()
      .integer(0)
      .append_items()
      .set_items()
      .append_items()
      .set_items()
      .set_items()
      .stop()
      .str();
}

void check_trainer_checkpoint(const std::string& file, const std::string& format) {
  const auto c = Checkpoint::open_memory(as_span(file));
  EXPECT_EQ(c->format(), format);
  EXPECT_EQ(c->metadata().at("epoch"), "3");
  EXPECT_EQ(c->metadata().at("model_name"), "UGT");
  EXPECT_EQ(c->metadata().at("best_loss"), "0.5");
  EXPECT_EQ(c->metadata().size(), 3u) << "what stands beside the tensors, not further in";
  ASSERT_EQ(c->tensors().size(), 6u);
  EXPECT_EQ(c->find("whole")->to_f32(), kSix);
  EXPECT_EQ(c->find("transposed")->to_f32(), (std::vector<float>{1, 4, 2, 5, 3, 6}));
  EXPECT_EQ(c->find("transposed")->to_bytes(), (std::vector<unsigned char>([] {
              const std::string s = floats({1, 4, 2, 5, 3, 6});
              return std::vector<unsigned char>(s.begin(), s.end());
            }())));
  EXPECT_EQ(c->find("second_row")->to_f32(), (std::vector<float>{4, 5, 6}));
  EXPECT_EQ(c->find("column")->to_f32(), (std::vector<float>{2, 5}));
  EXPECT_EQ(c->find("half")->to_f32(), (std::vector<float>{1, -2}));
  EXPECT_EQ(c->find("scalar")->to_i64(), std::vector<int64_t>{-9});
  EXPECT_EQ(c->find("whole")->data, c->find("transposed")->data) << "one storage";
  ASSERT_EQ(c->outside().size(), 1u);
  EXPECT_EQ(c->outside()[0].name, "optimizer.state.0.exp_avg");
  EXPECT_EQ(c->outside()[0].to_f32(), kSix);
}

const std::string kHalf = bytes_of(std::vector<uint16_t>{0x3c00, 0xc000});

TEST(PyTorch, zip) {
  const std::vector<std::pair<std::string, std::string>> storages = {
      {"0", bytes_of(kSix)}, {"1", kHalf}, {"2", bytes_of<int64_t>(-9)}};
  check_trainer_checkpoint(torch_zip(trainer_pickle(false), storages), "PyTorch zip");
  check_trainer_checkpoint(torch_zip(trainer_pickle(false), storages, true), "PyTorch zip");
}

TEST(PyTorch, zip64) {
  std::vector<ZipEntry> entries(4);
  const std::string names[] = {"m/data.pkl", "m/data/0", "m/data/1", "m/data/2"};
  const std::string data[] = {trainer_pickle(false), bytes_of(kSix), kHalf, bytes_of<int64_t>(-9)};
  for (size_t i = 0; i < 4; ++i) {
    entries[i].name = names[i];
    entries[i].data = data[i];
    entries[i].zip64 = true;
  }
  ZipSay say;
  say.zip64 = true;
  check_trainer_checkpoint(zip_file(entries, say), "PyTorch zip");
  for (ZipEntry& entry : entries) entry.say["crc"] = 0;
  check_trainer_checkpoint(zip_file(entries, say), "PyTorch zip without checksums");
  say.zip64 = false;
  say.end["comment"] = 65535;  // the longest there is
  say.after = std::string(65535, 'c');
  check_trainer_checkpoint(zip_file(entries, say), "PyTorch zip without checksums");
}

TEST(PyTorch, legacy) {
  check_trainer_checkpoint(
      torch_legacy(trainer_pickle(true),
                   {{"2", bytes_of<int64_t>(-9), 1}, {"0", bytes_of(kSix), 6}, {"1", kHalf, 2}}),
      "PyTorch legacy");
}

TEST(PyTorch, a_large_deflated_storage_of_real_weights) {
  // Larger than the bytes that are free of the ratio, from a generator, so that it hardly
  // compresses.
  std::mt19937 random(3);
  std::vector<float> values(1 << 19);
  for (float& v : values) v = static_cast<float>(random()) * 0x1p-32f;
  const std::string pickle = Pickle()
                                 .dict()
                                 .mark()
                                 .string("w")
                                 .tensor("FloatStorage", "0", 1 << 19, 0, {1 << 19}, {1})
                                 .set_items()
                                 .stop()
                                 .str();
  const std::string file = torch_zip(pickle, {{"0", bytes_of(values)}}, true);
  EXPECT_EQ(Checkpoint::open_memory(as_span(file))->find("w")->to_f32(), values);
}

TEST(PyTorch, protocol_4_with_frames_and_memo) {
  Pickle q(4);
  q.raw("\x95").raw(bytes_of<uint64_t>(1)).dict().op(0x94).mark();
  q.raw("\x8c\x01w").op(0x94).string("torch._utils").string("_rebuild_tensor_v2").op(0x93).op(0x94);
  q.mark()
      .storage("BFloat16Storage", "0", 2)
      .integer(0)
      .integers({2})
      .integers({1})
      .boolean(false)
      .dict()
      .tuple()
      .reduce();
  q.string("again").raw("h\x02");  // memo 2 is the global
  q.mark()
      .storage("BFloat16Storage", "0", 2)
      .integer(1)
      .integers({1})
      .integers({1})
      .boolean(false)
      .dict()
      .tuple()
      .reduce();
  q.string("seed").raw("\x8a\x05").raw(std::string("\0\0\0\0\xff", 5));  // two's complement
  q.string("step").raw("\x8a\x05").raw(std::string("\0\0\0\0\x01", 5));
  q.set_items().stop();
  const std::string file =
      torch_zip(q.str(), {{"0", bytes_of(std::vector<uint16_t>{0x3f80, 0x4000})}});
  const auto c = Checkpoint::open_memory(as_span(file));
  EXPECT_EQ(c->find("w")->to_f32(), (std::vector<float>{1, 2}));
  EXPECT_EQ(c->find("again")->to_f32(), std::vector<float>{2});
  EXPECT_EQ(c->metadata().at("seed"), "-4294967296");
  EXPECT_EQ(c->metadata().at("step"), "4294967296");
}

TEST(PyTorch, strides_that_are_out_of_order_inside_only) {
  std::vector<float> values(12);
  std::iota(values.begin(), values.end(), 0.0f);
  Pickle q;
  q.dict().mark().string("w").tensor("FloatStorage", "0", 12, 0, {2, 3, 2}, {6, 1, 3});
  const std::string file = torch_zip(q.set_items().stop().str(), {{"0", bytes_of(values)}});
  EXPECT_EQ(Checkpoint::open_memory(as_span(file))->find("w")->to_f32(),
            (std::vector<float>{0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11}));
}

// As in Python the last of two equal keys counts, and trainers call the model's dictionary so or
// so.
TEST(PyTorch, the_models_dictionary_is_found) {
  for (const char* key : {"state_dict", "model_state_dict", "model"}) {
    Pickle q;
    q.dict().mark();
    for (const char* name : {"old", "new"}) {
      q.string(key).dict().mark().string(name);
      q.tensor("FloatStorage", "0", 6, 0, {6}, {1}).set_items();
    }
    const std::string file = torch_zip(q.set_items().stop().str(), {{"0", bytes_of(kSix)}});
    const auto c = Checkpoint::open_memory(as_span(file));
    ASSERT_EQ(c->tensors().size(), 1u) << key;
    EXPECT_EQ(c->tensors()[0].name, "new");
  }
}

TEST(PyTorch, a_prefix_is_stripped_only_where_every_tensor_has_it) {
  const auto pickle = [](const char* second, const char* first = "module.a") {
    return Pickle()
        .dict()
        .mark()
        .string(first)
        .tensor("FloatStorage", "0", 6, 0, {6}, {1})
        .string(second)
        .tensor("FloatStorage", "0", 6, 0, {6}, {1})
        .set_items()
        .stop()
        .str();
  };
  const std::string all = torch_zip(pickle("module.b"), {{"0", bytes_of(kSix)}});
  const std::string some = torch_zip(pickle("b"), {{"0", bytes_of(kSix)}});
  EXPECT_NE(Checkpoint::open_memory(as_span(all))->find("a"), nullptr);
  EXPECT_EQ(Checkpoint::open_memory(as_span(some))->find("a"), nullptr);
  EXPECT_NE(Checkpoint::open_memory(as_span(some))->find("module.a"), nullptr);
  const std::string last = torch_zip(pickle("module.b", "transform"), {{"0", bytes_of(kSix)}});
  EXPECT_NE(Checkpoint::open_memory(as_span(last))->find("transform"), nullptr);
}

TEST(Checkpoint, what_is_taken_for_one_is_named) {
  const Folder folder;
  const std::string pointer = folder.write(
      "model.pth.tar", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n");
  EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { Checkpoint::open(pointer); }),
              HasSubstr("is a Git LFS pointer"));
}

TEST(Checkpoint, a_missing_file_is_an_io_error) {
  EXPECT_THAT(message_of(XSR_STATUS_IO, [] { Checkpoint::open("/nonexistent/model.pth.tar"); }),
              HasSubstr("/nonexistent/model.pth.tar: cannot open: No such file"));
  EXPECT_THAT(message_of(XSR_STATUS_IO, [] { Checkpoint::open("/"); }),
              HasSubstr("is a directory"));
}

// ---- reference material ----

TEST(Reference, the_trainers_checkpoints_are_read) {
  for (const std::string name :
       {"xsr-checkpoint", "xsr-checkpoint-module-prefix", "xsr-checkpoint-legacy"}) {
    SHARED_OR_SKIP(path, "golden/" + name + ".pth.tar");
    SCOPED_TRACE(name);
    const auto c = Checkpoint::open(path);
    ASSERT_EQ(c->tensors().size(), 43u);
    EXPECT_EQ(c->outside().size(), 164u)
        << "Adam with AMSGrad: four tensors for each of 41 parameters";
    EXPECT_EQ(c->metadata().at("model_name"), "UGT+ALIGN+SIM");
    const CheckpointTensor* token = c->find("model.bert.embedding.word_embedding.embedding.weight");
    ASSERT_NE(token, nullptr);
    EXPECT_EQ(token->shape, (std::vector<uint64_t>{101, 32}));
    EXPECT_EQ(token->to_f32()[0], 0.0f) << "row 0 is padding";
    EXPECT_EQ(token->to_bytes(), c->find("model.decoder.decoder.weight")->to_bytes());
  }
}

TEST(Reference, both_containers_hold_the_same_bits) {
  SHARED_OR_SKIP(zip_path, "golden/families/variants/pytorch-bin/pytorch_model.bin");
  SHARED_OR_SKIP(legacy_path, "golden/families/variants/pytorch-bin-legacy/pytorch_model.bin");
  const auto zip = Checkpoint::open(zip_path), legacy = Checkpoint::open(legacy_path);
  EXPECT_EQ(zip->format(), "PyTorch zip");
  EXPECT_EQ(legacy->format(), "PyTorch legacy");
  size_t same = 0;
  for (const auto& t : legacy->tensors()) {
    if (!t.name.starts_with("bert.")) continue;  // heads, which the other file has not
    std::string name = t.name.substr(5);
    for (const auto& [old_name, new_name] : {std::pair{".gamma", ".weight"}, {".beta", ".bias"}}) {
      if (name.ends_with(old_name))
        name.replace(name.size() - std::string(old_name).size(), std::string::npos, new_name);
    }
    const CheckpointTensor* other = zip->find(name);
    if (other == nullptr) continue;
    SCOPED_TRACE(t.name);
    EXPECT_EQ(t.shape, other->shape);
    EXPECT_EQ(t.dtype, other->dtype);
    EXPECT_EQ(t.to_bytes(), other->to_bytes());
    ++same;
  }
  EXPECT_GE(same, 37u);
}

TEST(Reference, golden_tensors_are_read) {
  SHARED_OR_SKIP(path, "golden/xsr-tiny.safetensors");
  const auto c = Checkpoint::open(path);
  EXPECT_EQ(nlohmann::json::parse(c->metadata().at("config")).at("hidden_size"), 32);
  EXPECT_EQ(c->find("ids1")->dtype, ScalarType::kI64);
  EXPECT_EQ(c->find("embedding1")->to_f64().size(), 6u * 32);
}

// ---- conversion ----

ConvertOptions options_for_test() {
  ConvertOptions o;
  o.num_heads = 3;
  return o;
}

ConvertedModel convert(const std::vector<NamedTensor>& tensors,
                       const ConvertOptions& options = options_for_test()) {
  const std::string file = safetensors_file(tensors);
  return convert_checkpoint(*Checkpoint::open_memory(as_span(file), "folder/model.safetensors"),
                            options);
}

std::string refused(const std::vector<NamedTensor>& tensors,
                    const ConvertOptions& options = options_for_test(),
                    xsr_status status = XSR_STATUS_BAD_FILE) {
  const std::string message = message_of(status, [&] { convert(tensors, options); });
  EXPECT_THAT(message, HasSubstr("folder/model.safetensors: "));
  return message;
}

const std::string kLayer1 = "model.bert.encoder.layer.1.";

/// Element (n, k) of a tensor in a .xsr file, whatever its layout.
float element(const TensorView& t, uint64_t n, uint64_t k) {
  const uint64_t columns = t.dims.size() == 2 ? t.dims[1] : 1;
  if (t.layout == Layout::kPanels32) {
    const kernels::PackedMatrix w{t.data, t.dtype, static_cast<int32_t>(t.dims[0]),
                                  static_cast<int32_t>(columns)};
    return kernels::gemm_packed_element(w, static_cast<int32_t>(n), static_cast<int32_t>(k));
  }
  return kernels::load_storage(t.data, t.dtype, static_cast<int64_t>(n * columns + k));
}

float rounded(float value, DType dtype) {
  if (dtype == DType::kBF16) return kernels::f32_from_bf16(kernels::bf16_from_f32(value));
  if (dtype == DType::kF16) return kernels::f32_from_f16(kernels::f16_from_f32(value));
  return value;
}

TEST(Convert, every_element_of_every_tensor_arrives) {
  for (const std::string source_type : {"F32", "F64"}) {
    const auto source = xsr_tensors({}, source_type);
    const std::string file = safetensors_file(source);
    const auto checkpoint = Checkpoint::open_memory(as_span(file), "folder/model.safetensors");
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      SCOPED_TRACE(source_type + " to " + to_string(dtype));
      ConvertOptions options = options_for_test();
      options.dtype = dtype;
      const ConvertedModel model = convert_checkpoint(*checkpoint, options);
      size_t size = 0;
      const auto bytes =
          write_xsr_memory(model.config, model.sources(), model.tokenizer, model.provenance, &size);
      const auto xsr = XsrFile::open_memory(bytes.get(), size);
      xsr->verify();
      ASSERT_EQ(xsr->tensors().size(), 4u + 2 * 12);
      size_t checked = 0;
      const auto compare = [&](const std::string& target, uint64_t first_row,
                               const std::string& name, bool weight) {
        SCOPED_TRACE(target + " from " + name);
        const TensorView* t = xsr->find(target);
        const CheckpointTensor* s = checkpoint->find(name);
        ASSERT_NE(t, nullptr);
        ASSERT_NE(s, nullptr);
        EXPECT_EQ(t->dtype, weight ? dtype : DType::kF32);
        const auto values = s->to_f32();
        const uint64_t columns = s->shape.size() == 2 ? s->shape[1] : 1;
        for (uint64_t i = 0; i < values.size(); ++i, ++checked) {
          ASSERT_EQ(element(*t, first_row + i / columns, i % columns), rounded(values[i], t->dtype))
              << "element " << i;
        }
      };
      const std::string e = "model.bert.embedding.";
      compare("embedding.token", 0, e + "word_embedding.embedding.weight", true);
      compare("embedding.position", 0, e + "position_embedding.position_embeddings.weight", true);
      compare("embedding.norm.weight", 0, e + "layer_norm.weight", false);
      compare("embedding.norm.bias", 0, e + "layer_norm.bias", false);
      for (const std::string i : {"0", "1"}) {
        const std::string at = "model.bert.encoder.layer." + i + ".", to = "layer." + i + ".";
        uint64_t row = 0;
        for (const std::string part : {"query", "key", "value"}) {
          compare(to + "qkv.weight", row, at + "attention.self_attention." + part + ".weight",
                  true);
          compare(to + "qkv.bias", row, at + "attention.self_attention." + part + ".bias", false);
          row += 24;
        }
        const std::pair<const char*, const char*> pairs[] = {
            {"attention_output", "attention.output.dense"},
            {"attention_norm", "attention.output.LayerNorm"},
            {"up", "intermediate.dense"},
            {"down", "output.dense"},
            {"output_norm", "output.LayerNorm"}};
        for (const auto& [target, name] : pairs) {
          const bool dense = std::string(name).ends_with("dense");
          compare(to + target + ".weight", 0, at + name + ".weight", dense);
          compare(to + target + ".bias", 0, at + name + ".bias", false);
          if (dense) {
            EXPECT_EQ(xsr->find(to + target + ".weight")->layout, Layout::kPanels32);
          }
        }
      }
      size_t elements = 0;
      for (const auto& t : xsr->tensors()) {
        uint64_t n = 1;
        for (const uint64_t d : t.dims) n *= d;
        elements += n;
      }
      EXPECT_EQ(checked, elements) << "a tensor of the file was not compared";
    }
  }
}

TEST(Convert, sizes_come_from_tensors_and_the_rest_from_the_family) {
  const ConvertedModel model = convert(xsr_tensors());
  const ModelConfig& c = model.config;
  EXPECT_EQ(c.family, Family::kXsr);
  EXPECT_EQ(c.num_layers, 2);
  EXPECT_EQ(c.hidden_size, 24);
  EXPECT_EQ(c.num_heads, 3);
  EXPECT_EQ(c.intermediate_size, 40);
  EXPECT_EQ(c.vocab_size, 40);
  EXPECT_EQ(c.num_positions, 9);
  EXPECT_EQ(c.position_offset, 1);
  EXPECT_EQ(c.max_seq_len, 8);
  EXPECT_EQ(c.embedding_size, 24);
  EXPECT_EQ(c.activation, Activation::kSwish);
  EXPECT_EQ(c.pooling, Pooling::kMean);
  EXPECT_EQ(c.layer_norm_eps, 1e-12);
  EXPECT_FALSE(c.normalize);
  EXPECT_TRUE(c.lowercase);
  EXPECT_EQ(c.tokenizer, TokenizerKind::kNone);
  EXPECT_EQ(c.mask_id, -1);
  EXPECT_THAT(model.dropped, testing::UnorderedElementsAre(
                                 "model.target_embedding.weight", "model.decoder.decoder.weight",
                                 "model.decoder.bias", "model.transform.dense.weight",
                                 "model.transform.dense.bias", "model.transform.LayerNorm.weight",
                                 "model.transform.LayerNorm.bias"));
}

TEST(Convert, options_override_the_family) {
  ConvertOptions o = options_for_test();
  o.num_heads = 4;
  o.activation = Activation::kGeluErf;
  o.lowercase = false;
  o.pooling = Pooling::kMax;
  o.layer_norm_eps = 1e-5;
  const ModelConfig c = convert(xsr_tensors(), o).config;
  EXPECT_EQ(c.num_heads, 4);
  EXPECT_EQ(c.activation, Activation::kGeluErf);
  EXPECT_FALSE(c.lowercase);
  EXPECT_EQ(c.pooling, Pooling::kMax);
  EXPECT_EQ(c.layer_norm_eps, 1e-5);
}

TEST(Convert, heads_default_to_64_wide_ones) {
  ConvertOptions o;
  Shape wide;
  wide.C = 128;
  EXPECT_EQ(convert(xsr_tensors(wide), o).config.num_heads, 2);
  EXPECT_THAT(refused(xsr_tensors(), o, XSR_STATUS_INVALID_ARGUMENT), HasSubstr("give --heads"));
  o.num_heads = 5;
  EXPECT_THAT(refused(xsr_tensors(), o, XSR_STATUS_INVALID_ARGUMENT),
              HasSubstr("--heads 5 does not divide hidden_size 24"));
}

TEST(Convert, the_same_input_gives_the_same_bytes) {
  const auto write = [] {
    ConvertOptions o = options_for_test();
    o.dtype = DType::kBF16;
    o.license = "CC0";
    const ConvertedModel model = convert(xsr_tensors(), o);
    size_t size = 0;
    const auto bytes =
        write_xsr_memory(model.config, model.sources(), model.tokenizer, model.provenance, &size);
    return std::string(reinterpret_cast<const char*>(bytes.get()), size);
  };
  EXPECT_EQ(write(), write());
}

TEST(Convert, provenance_names_the_source) {
  ConvertOptions o = options_for_test();
  o.dtype = DType::kF16;
  o.license = "CC BY 2.0 FR, by \xff someone";  // not UTF-8: replaced, never an exception
  const auto tensors = xsr_tensors();
  const auto json = nlohmann::json::parse(convert(tensors, o).provenance);
  EXPECT_EQ(json["source"]["file"], "model.safetensors")
      << "the base name alone, no folder of the machine";
  EXPECT_EQ(json["source"]["sha256"], sha256_hex(as_span(safetensors_file(tensors))));
  EXPECT_EQ(json["source"]["format"], "safetensors");
  EXPECT_EQ(json["dtype"], "f16");
  EXPECT_THAT(json["license"].get<std::string>(), HasSubstr("CC BY 2.0 FR"));
  EXPECT_THAT(json["converter"].get<std::string>(), testing::StartsWith("xsr-convert "));
}

TEST(Convert, sha256_of_the_standard) {
  EXPECT_EQ(sha256_hex(as_span(std::string("abc"))),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Convert, a_prefix_selects_and_is_taken_off) {
  auto tensors = xsr_tensors();
  for (auto& t : tensors) t.name = "parameter." + t.name;
  tensors.push_back({"ids", "I64", {1}, bytes_of<int64_t>(3)});
  EXPECT_THAT(
      refused(tensors),
      HasSubstr("is no checkpoint of family xsr (its first tensor is parameter.model.bert"));
  ConvertOptions o = options_for_test();
  o.prefix = "parameter.";
  EXPECT_EQ(convert(tensors, o).config.num_layers, 2);
  o.prefix = "none.";
  EXPECT_THAT(refused(tensors, o), HasSubstr("no tensor has a name that begins with none."));
  // "module." of a data-parallel wrapper is off already, which who names it cannot know.
  o.prefix = "module.parameter.";
  EXPECT_THAT(refused(tensors, o), HasSubstr("begins with module.parameter."));
  for (auto& t : tensors) t.name = "module." + t.name;
  EXPECT_EQ(convert(tensors, o).config.num_layers, 2);
  o.prefix = "parameter.";
  EXPECT_EQ(convert(tensors, o).config.num_layers, 2);
  tensors = xsr_tensors();
  for (auto& t : tensors) t.name = "module." + t.name;
  o.prefix = "module.";
  EXPECT_EQ(convert(tensors, o).config.num_layers, 2);
}

TEST(Convert, a_checkpoint_of_xsr_train_is_told_from_others) {
  const std::string file =
      safetensors_file({{"value.embedding.token", "F32", {1}, std::string(4, 0)}},
                       "{\"format\":\"xsr-train checkpoint 1\"}");
  const std::string message = message_of(XSR_STATUS_BAD_FILE, [&] {
    convert_checkpoint(*Checkpoint::open_memory(as_span(file), "best.safetensors"),
                       options_for_test());
  });
  EXPECT_THAT(message, HasSubstr("xsr-train --resume RUN"));
}

TEST(Convert, missing_tensors_are_named) {
  auto tensors = xsr_tensors();
  std::erase_if(tensors,
                [](const NamedTensor& t) { return t.name == kLayer1 + "output.dense.bias"; });
  EXPECT_THAT(refused(tensors),
              HasSubstr("1 tensors are missing:\n  model.bert.encoder.layer.1.output.dense.bias"));
  // A gap in the layers.
  tensors = xsr_tensors();
  for (auto& t : tensors) {
    if (t.name.starts_with(kLayer1))
      t.name.replace(0, kLayer1.size(), "model.bert.encoder.layer.2.");
  }
  EXPECT_THAT(refused(tensors),
              HasSubstr("16 tensors are missing:\n  "
                        "model.bert.encoder.layer.1.attention.self_attention.query.weight"));
  EXPECT_THAT(refused(tensors), HasSubstr("and 8 more"));
  tensors = xsr_tensors();
  named(tensors, kLayer1 + "output.dense.bias").name =
      "model.bert.encoder.layer.99999999.output.dense.bias";
  EXPECT_THAT(refused(tensors), HasSubstr("is layer 99999999, expected fewer than 1024"));
}

TEST(Convert, unexpected_tensors_are_named) {
  auto tensors = xsr_tensors();
  tensors.push_back({"model.la_tag_linear.embedding.weight", "F32", {1}, floats({1})});
  tensors.push_back({"model.bert.encoder.layer.x.dense.weight", "F32", {1}, floats({1})});
  const std::string message = refused(tensors);
  EXPECT_THAT(
      message,
      HasSubstr("2 tensors are unexpected in family xsr:\n  model.la_tag_linear.embedding.weight\n"
                "  model.bert.encoder.layer.x.dense.weight"));
  EXPECT_THAT(message, Not(HasSubstr("missing")));
}

TEST(Convert, wrong_shapes_say_where_the_size_comes_from) {
  auto tensors = xsr_tensors();
  NamedTensor& t = named(tensors, kLayer1 + "output.dense.weight");
  t.shape = {24, 39};
  t.data.resize(24 * 39 * 4);
  EXPECT_THAT(
      refused(tensors),
      HasSubstr("model.bert.encoder.layer.1.output.dense.weight is [24, 39], expected [24, 40]\n"
                "  (intermediate_size 40 comes from "
                "model.bert.encoder.layer.0.intermediate.dense.weight). Is this a model "
                "with layers of different sizes? Those are not supported."));
  tensors = xsr_tensors();
  named(tensors, kLayer1 + "attention.output.dense.bias").shape = {4, 6};
  EXPECT_THAT(refused(tensors), HasSubstr("attention.output.dense.bias is [4, 6], expected [24]"));
  tensors = xsr_tensors();
  named(tensors, "model.bert.embedding.word_embedding.embedding.weight").shape = {960};
  EXPECT_THAT(refused(tensors), HasSubstr("embedding.weight is [960], expected a matrix"));
  tensors = xsr_tensors();
  NamedTensor& p =
      named(tensors, "model.bert.embedding.position_embedding.position_embeddings.weight");
  p.shape = {1, 24};
  p.data.resize(24 * 4);
  EXPECT_THAT(refused(tensors), HasSubstr("is [1, 24], expected more than 1 rows"));
}

TEST(Convert, integers_are_no_weights) {
  auto tensors = xsr_tensors();
  named(tensors, kLayer1 + "output.dense.weight").dtype = "I32";
  EXPECT_THAT(refused(tensors),
              HasSubstr("output.dense.weight is I32, expected F32, F16, BF16 or F64"));
}

TEST(Convert, tied_tensors_must_agree_bit_for_bit) {
  auto tensors = xsr_tensors();
  named(tensors, "model.decoder.decoder.weight").data[(7 * 24 + 5) * 4] ^= 1;
  EXPECT_THAT(refused(tensors),
              HasSubstr("model.decoder.decoder.weight differs from "
                        "model.bert.embedding.word_embedding.embedding.weight at [7, 5]"));
  tensors = xsr_tensors();
  named(tensors, "model.target_embedding.weight").shape = {24, 40};
  EXPECT_THAT(refused(tensors),
              HasSubstr("model.target_embedding.weight is F32 [24, 40], but it is tied to"));
  tensors = xsr_tensors();
  NamedTensor& copy = named(tensors, "model.target_embedding.weight");
  copy.data += copy.data;
  copy.dtype = "F64";
  EXPECT_THAT(refused(tensors),
              HasSubstr("model.target_embedding.weight is F64 [40, 24], but it is tied to"));
  // A checkpoint of the encoder alone has no copies to compare.
  tensors = xsr_tensors();
  tensors.resize(tensors.size() - 7);
  EXPECT_TRUE(convert(tensors).dropped.empty());
}

TEST(Convert, weights_that_are_not_finite_are_named_with_their_index) {
  const auto with = [](float value, const std::string& name, size_t element,
                       DType dtype = DType::kF32) {
    auto tensors = xsr_tensors();
    std::memcpy(named(tensors, name).data.data() + element * 4, &value, 4);
    ConvertOptions o = options_for_test();
    o.dtype = dtype;
    return refused(tensors, o);
  };
  const float inf = std::numeric_limits<float>::infinity();
  const std::string key = kLayer1 + "attention.self_attention.key.weight",
                    bias = kLayer1 + "output.LayerNorm.bias";
  EXPECT_THAT(with(std::nanf(""), key, 24 * 3 + 17),
              HasSubstr(key + " has NaN at [3, 17], expected finite weights"));
  EXPECT_THAT(with(inf, bias, 23), HasSubstr(bias + " has infinity at [23]"));
  EXPECT_THAT(with(-inf, bias, 0), HasSubstr(bias + " has infinity at [0]"));
  EXPECT_THAT(with(70000, key, 1, DType::kF16),
              HasSubstr(key + " has 70000 at [0, 1], which is beyond the range of f16"));
  EXPECT_THAT(with(3.4e38f, key, 1, DType::kBF16),
              HasSubstr("has 3.4e+38 at [0, 1], which is beyond the range of bf16"));
  // Vectors stay in f32, where there is room for it.
  auto tensors = xsr_tensors();
  const float wide = 70000;
  std::memcpy(named(tensors, bias).data.data(), &wide, sizeof wide);
  ConvertOptions f16 = options_for_test();
  f16.dtype = DType::kF16;
  EXPECT_FALSE(convert(tensors, f16).tensors.empty());
  tensors = xsr_tensors({}, "F64");
  const double large = 1e300;
  std::memcpy(named(tensors, key).data.data(), &large, 8);
  EXPECT_THAT(refused(tensors),
              HasSubstr("has 1e+300 at [0, 0], which is beyond the range of f32"));
}

TEST(Convert, a_tokenizer_is_checked) {
  ConvertOptions o = options_for_test();
  o.sentencepiece = "this is no protocol buffer";
  o.sentencepiece_name = "x.model";
  EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { convert(xsr_tensors(), o); }),
              HasSubstr("x.model: SentencePiece model: offset 0: "));
  // What the library would take and a session would not open.
  const auto field = [](int number, const std::string& bytes) {
    return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
  };
  const auto piece = [&](const std::string& text, char type) {
    return field(1, field(1, text) + '\x18' + type);
  };
  o.sentencepiece = piece("<unk>", 2);
  for (int i = 1; i < 70; ++i) o.sentencepiece += piece(std::string(i, 'x'), 4);
  Shape seventy;
  seventy.V = 70;
  EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { convert(xsr_tensors(seventy), o); }),
              HasSubstr("x.model: SentencePiece model: more than 64 user-defined symbols"));
  SHARED_OR_SKIP(path, "models/xsr-enfr-16k.spm.model");
  o.sentencepiece = read_file(path);
  EXPECT_THAT(
      message_of(XSR_STATUS_BAD_FILE, [&] { convert(xsr_tensors(), o); }),
      HasSubstr(
          "x.model: has 16000 pieces, but model.bert.embedding.word_embedding.embedding.weight in "
          "folder/model.safetensors has only 40 rows"));
  Shape large;
  large.V = 16000;
  const ConvertedModel model = convert(xsr_tensors(large), o);
  EXPECT_EQ(model.config.tokenizer, TokenizerKind::kSentencePiece);
  EXPECT_EQ(model.config.pad_id, 0);
  EXPECT_EQ(model.config.unk_id, 1);
  EXPECT_EQ(model.config.mask_id, 2);
  EXPECT_EQ(model.tokenizer, o.sentencepiece);
}

TEST(Convert, ids_that_a_tokenizer_does_not_have_are_none) {
  const auto field = [](const std::string& bytes) {
    return std::string{'\n', static_cast<char>(bytes.size())} + bytes;
  };
  ConvertOptions o = options_for_test();
  for (const std::string piece : {"a", "<MASK>"}) {
    o.sentencepiece = field(field("<unk>") + "\x18\x02") + field(field(piece) + "\x18\x04");
    const ModelConfig config = convert(xsr_tensors(), o).config;
    EXPECT_EQ(config.unk_id, 0);
    EXPECT_EQ(config.pad_id, -1);
    EXPECT_EQ(config.mask_id, piece == "a" ? -1 : 1);
  }
}

TEST(Convert, families_that_are_not_there_yet) {
  ConvertOptions o = options_for_test();
  o.family = Family::kBert;
  EXPECT_THAT(message_of(XSR_STATUS_UNSUPPORTED, [&] { convert(xsr_tensors(), o); }),
              HasSubstr("family bert cannot be converted"));
  o.family = Family::kXsr;
  o.dtype = static_cast<DType>(9);
  EXPECT_THAT(message_of(XSR_STATUS_UNSUPPORTED, [&] { convert(xsr_tensors(), o); }),
              HasSubstr("dtype is 9, this build knows 0 (f32), "));
}

TEST(Convert, int8_is_half_a_step_from_f32) {
  ConvertOptions o = options_for_test();
  const ConvertedModel wide = convert(xsr_tensors(), o);
  o.dtype = DType::kI8;
  const ConvertedModel narrow = convert(xsr_tensors(), o);
  size_t size = 0;
  const auto bytes =
      write_xsr_memory(narrow.config, narrow.sources(), narrow.tokenizer, narrow.provenance, &size);
  XsrFile::open_memory(bytes.get(), size)->verify();
  ASSERT_EQ(wide.tensors.size(), narrow.tensors.size());
  for (size_t i = 0; i < wide.tensors.size(); ++i) {
    const auto &w = wide.tensors[i], &q = narrow.tensors[i];
    EXPECT_EQ(w.dims, q.dims) << w.name;
    if (q.dims.size() < 2) {
      EXPECT_EQ(w.data, q.data) << w.name << ": vectors stay f32";
      continue;
    }
    ASSERT_EQ(DType::kI8, q.dtype) << w.name;
    ASSERT_EQ(q.dims[0], q.scales.size()) << w.name;
    const auto N = static_cast<int32_t>(w.dims[0]), K = static_cast<int32_t>(w.dims[1]);
    for (int32_t n = 0; n < N; ++n) {
      for (int32_t k = 0; k < K; ++k) {
        const kernels::PackedMatrix exact{w.data.data(), kernels::Storage::kF32, N, K},
            rounded{q.data.data(), kernels::Storage::kI8, N, K, q.scales.data()};
        const bool panels = w.layout == Layout::kPanels32;
        const float value =
            panels ? kernels::gemm_packed_element(exact, n, k)
                   : reinterpret_cast<const float*>(w.data.data())[static_cast<size_t>(n) * K + k];
        const float found =
            panels ? kernels::gemm_packed_element(rounded, n, k)
                   : q.scales[n] * static_cast<int8_t>(q.data[static_cast<size_t>(n) * K + k]);
        ASSERT_LE(std::fabs(value - found), 0.501f * q.scales[n]) << w.name << " " << n << " " << k;
      }
    }
  }
}

// ---- quality ----

TEST(Retrieval, counts_translations_that_are_nearest) {
  ThreadPool threads(2);
  // 9 sentences along 9 axes; translations stand at the same place but for two that are swapped.
  const int32_t size = 9;
  std::vector<float> a(size * size), b(size * size);
  for (int32_t i = 0; i < size; ++i) {
    a[i * size + i] = 3;
    b[i * size + (i == 4 ? 5 : i == 5 ? 4 : i)] = 0.25;
  }
  RetrievalScore score = score_retrieval(a.data(), b.data(), size, size, threads);
  EXPECT_EQ(score.pairs, 9);
  EXPECT_EQ(score.forward, 7);
  EXPECT_EQ(score.backward, 7);
  // Of equals the lower index counts: 8 is as near to 2 as 2 is, and the other way to 3 as 3 is.
  std::copy_n(&b[2 * size], size, &b[8 * size]);
  std::copy_n(&a[3 * size], size, &a[8 * size]);
  score = score_retrieval(a.data(), b.data(), size, size, threads);
  EXPECT_EQ(score.forward, 6);
  EXPECT_EQ(score.backward, 6);
  // Length counts nothing; a vector of zeros is equally far from all and finds the first.
  for (int32_t c = 0; c < size; ++c) b[size + c] *= 1000, b[3 * size + c] = 0;
  score = score_retrieval(a.data(), b.data(), size, size, threads);
  EXPECT_EQ(score.forward, 5);
  EXPECT_EQ(score.backward, 5);
  const float there[] = {1, 2}, opposite[] = {-1, -2};
  score = score_retrieval(there, opposite, 1, 2, threads);
  EXPECT_EQ(score.forward, 1) << "nearer ones are not there";
}

TEST(Retrieval, zeros_have_cosine_0_with_everything) {
  ThreadPool threads(1);
  const float a[] = {0, 0, 1, 0}, b[] = {-1, 0, 0, 0};
  const RetrievalScore score = score_retrieval(a, b, 2, 2, threads);
  EXPECT_EQ(score.forward, 2) << "of equals the lower index, and 0 is above -1";
  EXPECT_EQ(score.backward, 1);
}

TEST(Retrieval, counts_as_a_plain_search_does) {
  ThreadPool threads(3);
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const int32_t size = 5;
  for (const int64_t pairs : {0, 1, 7, 64, 65, 300}) {
    std::vector<float> a(pairs * size), b(pairs * size);
    for (float& x : a) x = normal(random);
    for (size_t i = 0; i < b.size(); ++i) b[i] = a[i] + 0.5f * normal(random);
    const auto hits = [&](const std::vector<float>& from, const std::vector<float>& to) {
      int64_t count = 0;
      for (int64_t i = 0; i < pairs; ++i) {
        int64_t nearest = -1;
        double best = -2;
        for (int64_t j = 0; j < pairs; ++j) {
          double dot = 0, squares = 0;
          for (int32_t c = 0; c < size; ++c) {
            dot += double{from[i * size + c]} * to[j * size + c];
            squares += double{to[j * size + c]} * to[j * size + c];
          }
          const double score = dot / std::sqrt(squares);
          if (nearest < 0 || score > best) best = score, nearest = j;
        }
        count += nearest == i;
      }
      return count;
    };
    const RetrievalScore score = score_retrieval(a.data(), b.data(), pairs, size, threads);
    EXPECT_EQ(score.pairs, pairs);
    EXPECT_EQ(score.forward, hits(a, b)) << pairs;
    EXPECT_EQ(score.backward, hits(b, a)) << pairs;
    if (pairs == 300) {
      EXPECT_GT(score.forward, 30);
      EXPECT_LT(score.forward, 270);
    }
  }
}

/// Checkpoint, options and corpus of a model that takes text.
struct TextModel {
  TextModel() {
    shape.V = 1000;
    shape.P = 41;
    options.sentencepiece = read_file(kSource / "tests/data/tiny-bpe.spm.model");
    for (const std::string& line : read_lines(kSource / "tests/data/tiny-corpus.txt")) {
      if (line.empty()) continue;
      for (const size_t begin : {size_t{0}, line.size() / 3, line.size() / 2}) {
        first.push_back(line.substr(begin));
        second.push_back(first.back().substr(0, first.back().size() / 2));
        corpus += first.back() + "\t" + second.back() + "\tsource\n";
      }
    }
  }
  ConvertedModel converted(DType dtype) {
    options.dtype = dtype;
    return convert(xsr_tensors(shape), options);
  }
  Shape shape;
  ConvertOptions options = options_for_test();
  std::vector<std::string> first, second;
  std::string corpus;
};

/// Embeddings [texts.size(), C] in double.
std::vector<std::vector<double>> embeddings(const ConvertedModel& model, xsr_compute compute,
                                            const std::vector<std::string>& texts) {
  size_t size = 0;
  const auto file =
      write_xsr_memory(model.config, model.sources(), model.tokenizer, model.provenance, &size);
  xsr_session_options options = {};
  options.compute = compute;
  Session session(Model(std::span(reinterpret_cast<const std::byte*>(file.get()), size)), options);
  std::vector<std::vector<double>> out;
  for (const std::string& text : texts) {
    const std::vector<float> row = session.embed(std::string_view(text));
    out.emplace_back(row.begin(), row.end());
  }
  return out;
}

double cosine(const std::vector<double>& a, const std::vector<double>& b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t c = 0; c < a.size(); ++c) ab += a[c] * b[c], aa += a[c] * a[c], bb += b[c] * b[c];
  return ab / std::sqrt(aa * bb);
}

TEST(Quality, is_what_the_sessions_of_a_user_give) {
  const Folder folder;
  TextModel text;
  const PairFile corpus = parse_pair_file("pairs=" + folder.write("pairs.tsv", text.corpus));
  const ConvertedModel wide = text.converted(DType::kF32), narrow = text.converted(DType::kI8);
  const Quality quality = measure_quality(wide, narrow, DType::kI8, corpus);
  const auto a = embeddings(wide, XSR_COMPUTE_F32, text.first),
             b = embeddings(wide, XSR_COMPUTE_F32, text.second),
             narrow_a = embeddings(narrow, XSR_COMPUTE_INT8, text.first),
             narrow_b = embeddings(narrow, XSR_COMPUTE_INT8, text.second);
  std::vector<double> cosines;
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    cosines.push_back(cosine(a[i], narrow_a[i]));
    cosines.push_back(cosine(b[i], narrow_b[i]));
    sum += cosines[2 * i] + cosines[2 * i + 1];
  }
  std::sort(cosines.begin(), cosines.end());
  EXPECT_EQ(quality.corpus, "pairs");
  EXPECT_EQ(quality.compute, "int8");
  EXPECT_EQ(quality.sentences, static_cast<int64_t>(cosines.size()));
  EXPECT_NEAR(quality.cosine_mean, sum / static_cast<double>(cosines.size()), 1e-12);
  EXPECT_NEAR(quality.cosine_min, cosines[0], 1e-12);
  ASSERT_GT(cosines.size(), 100u);
  ASSERT_LE(cosines.size(), 200u);
  EXPECT_NEAR(quality.cosine_quantile, cosines[1], 1e-12) << "1 % of 101 to 200 are two";
  EXPECT_LT(quality.cosine_min, quality.cosine_quantile - 1e-9);
  EXPECT_LT(quality.cosine_min, 1 - 1e-7) << "the i8 model computed in f32";

  const auto hits = [](const auto& from, const auto& to) {
    int64_t count = 0;
    for (size_t i = 0; i < from.size(); ++i) {
      size_t best = 0;
      for (size_t j = 1; j < to.size(); ++j)
        if (cosine(from[i], to[j]) > cosine(from[i], to[best])) best = j;
      count += best == i;
    }
    return count;
  };
  EXPECT_EQ(quality.before.pairs, static_cast<int64_t>(a.size()));
  EXPECT_EQ(quality.before.forward, hits(a, b));
  EXPECT_EQ(quality.before.backward, hits(b, a));
  EXPECT_EQ(quality.after.forward, hits(narrow_a, narrow_b));
  EXPECT_EQ(quality.after.backward, hits(narrow_b, narrow_a));
}

TEST(Quality, before_is_the_wide_model_and_after_the_narrow_one) {
  const Folder folder;
  TextModel text;
  const PairFile corpus = parse_pair_file(folder.write("pairs.tsv", text.corpus));
  const ConvertedModel narrow = text.converted(DType::kI8);
  ConvertedModel other = text.converted(DType::kF32);
  std::fill_n(other.tensors[0].data.begin(), other.tensors[0].data.size() / 2, 0);
  const Quality quality = measure_quality(other, narrow, DType::kI8, corpus);
  const RetrievalScore before = measure_quality(other, other, DType::kF16, corpus).after;
  const RetrievalScore after = measure_quality(narrow, narrow, DType::kI8, corpus).after;
  EXPECT_NE(before.forward, after.forward) << "or this says nothing";
  EXPECT_EQ(quality.before.forward, before.forward);
  EXPECT_EQ(quality.before.backward, before.backward);
  EXPECT_EQ(quality.after.forward, after.forward);
  EXPECT_EQ(quality.after.backward, after.backward);
}

TEST(Quality, text_and_record_hold_every_number) {
  Quality q;
  q.corpus = "pairs";
  q.dtype = DType::kI8;
  q.compute = "int8";
  q.isa = "avx2";
  q.sentences = 15;
  q.cosine_mean = 0.875;
  q.cosine_min = 0.5;
  q.cosine_quantile = 0.625;
  q.before.pairs = q.after.pairs = 8;
  q.before.forward = 7;
  q.before.backward = 6;
  q.after.forward = 4;
  q.after.backward = 2;
  EXPECT_EQ(quality_text(q),
            "pairs, 8 pairs, i8 weights computed in int8 by avx2 beside f32: cosine mean "
            "0.87500000, minimum 0.50000000, 1 % quantile 0.62500000; P@1 87.5 % before, 50.0 % "
            "after (side 1 to 2), 75.0 % before, 25.0 % after (2 to 1)");
  ConvertedModel model;
  model.provenance = R"({"license":"CC0"})";
  record_quality(q, model);
  EXPECT_EQ(nlohmann::json::parse(model.provenance),
            nlohmann::json::parse(R"({"license": "CC0", "quality": {
              "compute": "int8", "corpus": "pairs", "isa": "avx2", "pairs": 8, "sentences": 15,
              "cosine_to_f32": {"mean": 0.875, "minimum": 0.5, "quantile_1_percent": 0.625},
              "precision_at_1": {"before": {"1_to_2": 0.875, "2_to_1": 0.75},
                                 "after": {"1_to_2": 0.5, "2_to_1": 0.25}}}})"));
}

TEST(PairFile, names_and_columns) {
  const Folder folder;
  EXPECT_EQ(parse_pair_file("a/en-fr.tsv").name, "en-fr");
  EXPECT_EQ(parse_pair_file("a/en.txt,b/fr.txt").name, "en-fr");
  EXPECT_EQ(parse_pair_file("en/dev.txt,fr/dev.txt").name, "dev");
  EXPECT_EQ(parse_pair_file("x=a.txt,b.txt").second, "b.txt");
  EXPECT_EQ(parse_pair_file("a/b=c.tsv").first, "a/b=c.tsv");
  EXPECT_EQ(parse_pair_file("a/en-fr.tsv.gz").name, "en-fr");
  EXPECT_EQ(parse_pair_file("a/en.txt.zst,b/fr.txt.gz").name, "en-fr");
  const std::string text = "a\tb\nc d\te f\tsource\tmore\n";
  for (const std::string& bytes : {text, test::gzip(text), test::zstd(text)}) {
    const PairLines lines = read_pairs(parse_pair_file(folder.write("x.tsv", bytes)));
    EXPECT_EQ(lines.first, (std::vector<std::string>{"a", "c d"}));
    EXPECT_EQ(lines.second, (std::vector<std::string>{"b", "e f"}));
  }
  const std::string one = folder.write("one", "a\n"), two = folder.write("two", "a\nb\n");
  for (const std::string& files : {one + "," + two, two + "," + one}) {
    EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { read_pairs(parse_pair_file(files)); }),
                HasSubstr("expected the same sentence in the same line of both"));
  }
}

TEST(Quality, of_f16_that_lost_nothing_is_1) {
  const Folder folder;
  TextModel text;
  const PairFile corpus = parse_pair_file(folder.write("pairs.tsv", text.corpus));
  const ConvertedModel wide = text.converted(DType::kF32);
  const Quality quality = measure_quality(wide, wide, DType::kF16, corpus);
  EXPECT_EQ(quality.compute, "f32");
  EXPECT_NEAR(quality.cosine_min, 1, 1e-12);
  EXPECT_EQ(quality.before.forward, quality.after.forward);
  EXPECT_EQ(quality.before.backward, quality.after.backward);
}

TEST(Quality, of_bf16_is_computed_in_bf16) {
  const Folder folder;
  TextModel text;
  const PairFile corpus = parse_pair_file(folder.write("pairs.tsv", text.corpus));
  const ConvertedModel narrow = text.converted(DType::kBF16);
  const Quality quality = measure_quality(narrow, narrow, DType::kBF16, corpus);
  EXPECT_EQ(quality.compute, "bf16");
  EXPECT_LT(quality.cosine_min, 1 - 1e-9) << "activations are rounded, too";
}

TEST(Quality, rows_that_became_zero_count_as_lost) {
  const Folder folder;
  TextModel text;
  std::string fifty;
  for (size_t i = 0; i < 50; ++i) fifty += text.first[i] + "\t" + text.second[i] + "\n";
  const PairFile corpus = parse_pair_file(folder.write("pairs.tsv", fifty));
  const ConvertedModel wide = text.converted(DType::kF32);
  const Quality some = measure_quality(wide, text.converted(DType::kI8), DType::kI8, corpus);
  ASSERT_EQ(some.sentences, 100);
  EXPECT_EQ(some.cosine_quantile, some.cosine_min) << "1 % of 100 is one";
  ConvertedModel zero = wide;
  for (ConvertedModel::Tensor& t : zero.tensors) {
    if (t.name.find("output_norm") != std::string::npos) std::fill(t.data.begin(), t.data.end(), 0);
  }
  const Quality none = measure_quality(wide, zero, DType::kF16, corpus);
  EXPECT_EQ(none.sentences, 100);
  EXPECT_EQ(none.cosine_mean, 0);
  EXPECT_EQ(none.cosine_min, 0);
}

TEST(Quality, wants_text_pairs_and_tokens) {
  const Folder folder;
  TextModel text;
  const ConvertedModel model = text.converted(DType::kBF16);
  const auto measure = [&](const ConvertedModel& m, const std::string& lines) {
    return measure_quality(m, m, DType::kBF16, parse_pair_file(folder.write("x.tsv", lines)));
  };
  EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { measure(model, "a\tb\nc\n"); }),
              HasSubstr("x.tsv:2: has 1 column, expected 2"));
  EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { measure(model, ""); }),
              HasSubstr("has no lines"));
  EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { measure(model, "\t\n\t\n"); }),
              HasSubstr("no sentence has tokens"));
  EXPECT_THAT(
      message_of(
          XSR_STATUS_IO,
          [&] { measure_quality(model, model, DType::kBF16, parse_pair_file("/nonexistent")); }),
      HasSubstr("/nonexistent"));
  for (const char* none : {"", "x=", "x=,b", "a,"}) {
    EXPECT_THAT(message_of(XSR_STATUS_INVALID_ARGUMENT, [&] { parse_pair_file(none); }),
                HasSubstr("\"" + std::string(none) + "\" names no file"));
  }
  const ConvertedModel ids_only = convert(xsr_tensors());
  EXPECT_THAT(message_of(XSR_STATUS_INVALID_ARGUMENT, [&] { measure(ids_only, "a\tb\n"); }),
              HasSubstr("give --spm"));
}

// ---- calibrated ranges ----

ConvertedModel::Tensor& tensor_of(ConvertedModel& model, const std::string& name) {
  for (ConvertedModel::Tensor& t : model.tensors)
    if (t.name == name) return t;
  throw std::runtime_error("no tensor " + name);
}

/// What goes into the first layer's first product, in double: the norm of token plus position.
std::pair<double, double> first_input_range(ConvertedModel model,
                                            const std::vector<std::string>& texts) {
  size_t size = 0;
  const auto file =
      write_xsr_memory(model.config, model.sources(), model.tokenizer, model.provenance, &size);
  Session session(Model(std::span(reinterpret_cast<const std::byte*>(file.get()), size)));
  const auto values = [&](const std::string& name) {
    return reinterpret_cast<const float*>(tensor_of(model, name).data.data());
  };
  const float *token = values("embedding.token"), *position = values("embedding.position"),
              *weight = values("embedding.norm.weight"), *bias = values("embedding.norm.bias");
  const auto C = static_cast<size_t>(model.config.hidden_size);
  std::pair<double, double> range = {0, 0};
  for (const std::string& text : texts) {
    size_t row = 1;  // the family's first position
    for (const int32_t id : session.tokenize(text)) {
      std::vector<double> x(C);
      double mean = 0, variance = 0;
      for (size_t c = 0; c < C; ++c) {
        x[c] = double{token[static_cast<size_t>(id) * C + c]} + position[row * C + c];
        mean += x[c] / static_cast<double>(C);
      }
      for (const double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(C);
      for (size_t c = 0; c < C; ++c) {
        const double y = (x[c] - mean) / std::sqrt(variance) * weight[c] + bias[c];
        range = {std::min(range.first, y), std::max(range.second, y)};
      }
      ++row;
    }
  }
  return range;
}

TEST(Calibrate, ranges_are_those_of_the_inputs_and_are_computed_with) {
  const Folder folder;
  TextModel text;
  const PairFile corpus = parse_pair_file("pairs=" + folder.write("pairs.tsv", text.corpus));
  const ConvertedModel wide = text.converted(DType::kF32), dynamic = text.converted(DType::kI8);
  ConvertedModel calibrated = dynamic;
  calibrate(wide, corpus, calibrated);
  const auto layers = static_cast<size_t>(wide.config.num_layers);
  ASSERT_EQ(calibrated.tensors.size(), dynamic.tensors.size() + 4 * layers);
  const auto provenance = nlohmann::json::parse(calibrated.provenance);
  EXPECT_EQ(provenance["calibration"]["corpus"], "pairs");
  EXPECT_EQ(provenance["calibration"]["sentences"], 2 * text.first.size());

  const auto expect_first_range = [](const ConvertedModel& model, ConvertedModel ranges,
                                     const std::vector<std::string>& texts) {
    float found[2];
    std::memcpy(found, tensor_of(ranges, "layer.0.qkv.input_range").data.data(), sizeof found);
    const auto [low, high] = first_input_range(model, texts);
    EXPECT_NEAR(found[0], low, 1e-5);
    EXPECT_NEAR(found[1], high, 1e-5);
  };
  std::vector<std::string> all = text.first;
  all.insert(all.end(), text.second.begin(), text.second.end());
  expect_first_range(wide, calibrated, all);
  // A few tokens, each of which may hold the least, and the greatest in the last column.
  ConvertedModel peaked = wide;
  const float peak = 10;
  auto& bias = tensor_of(peaked, "embedding.norm.bias").data;
  std::memcpy(bias.data() + bias.size() - sizeof peak, &peak, sizeof peak);
  for (size_t i = 0; i < text.first.size(); i += 5) {
    const std::string few = text.first[i].substr(0, 6),
                      other = text.first[text.first.size() - 1 - i].substr(0, 6);
    ConvertedModel ranges = dynamic;
    calibrate(peaked, parse_pair_file(folder.write("few.tsv", few + "\t" + other)), ranges);
    expect_first_range(peaked, ranges, {few, other});
  }

  const auto exact = embeddings(wide, XSR_COMPUTE_F32, text.first),
             by_row = embeddings(dynamic, XSR_COMPUTE_INT8, text.first),
             by_range = embeddings(calibrated, XSR_COMPUTE_INT8, text.first);
  EXPECT_NE(by_row, by_range) << "the ranges of the file were not computed with";
  double least = 1;
  for (size_t i = 0; i < exact.size(); ++i) least = std::min(least, cosine(exact[i], by_range[i]));
  EXPECT_GT(least, 0.999);

  // Ranges are tight: a quarter of one cuts values off.
  for (const char* product : {"qkv", "attention_output", "up", "down"}) {
    ConvertedModel cut = calibrated;
    auto& data = tensor_of(cut, std::string("layer.0.") + product + ".input_range").data;
    float range[2];
    std::memcpy(range, data.data(), sizeof range);
    EXPECT_LT(range[0], range[1]) << product;
    EXPECT_LE(range[0], 0) << product;
    EXPECT_GE(range[1], 0) << product;
    for (float& end : range) end *= 0.25f;
    std::memcpy(data.data(), range, sizeof range);
    const auto saturated = embeddings(cut, XSR_COMPUTE_INT8, text.first);
    double worst = 1;
    for (size_t i = 0; i < exact.size(); ++i)
      worst = std::min(worst, cosine(exact[i], saturated[i]));
    EXPECT_LT(worst, least) << product;
  }
  ConvertedModel wide_with_ranges = wide;
  for (size_t i = dynamic.tensors.size(); i < calibrated.tensors.size(); ++i)
    wide_with_ranges.tensors.push_back(calibrated.tensors[i]);
  EXPECT_EQ(exact, embeddings(wide_with_ranges, XSR_COMPUTE_F32, text.first))
      << "f32 has no use for ranges";
  EXPECT_EQ(by_range[0], embeddings(calibrated, XSR_COMPUTE_INT8, {text.first[0]})[0]);
}

TEST(Calibrate, a_range_that_is_none_is_refused) {
  const Folder folder;
  TextModel text;
  const PairFile corpus = parse_pair_file(folder.write("pairs.tsv", text.corpus));
  const ConvertedModel wide = text.converted(DType::kF32);
  ConvertedModel model = text.converted(DType::kI8);
  calibrate(wide, corpus, model);
  const float nan = std::numeric_limits<float>::quiet_NaN(),
              infinity = std::numeric_limits<float>::infinity();
  const float broken[][2] = {{1, 2}, {-2, -1}, {nan, 1}, {-1, nan}, {-infinity, 1}};
  for (const auto& range : broken) {
    auto& data = tensor_of(model, "layer.1.up.input_range").data;
    std::memcpy(data.data(), range, sizeof range);
    try {
      embeddings(model, XSR_COMPUTE_INT8, {"a"});
      ADD_FAILURE() << range[0] << " to " << range[1] << " was taken";
    } catch (const Exception& e) {
      EXPECT_EQ(e.status(), XSR_STATUS_BAD_FILE);
      EXPECT_THAT(e.what(), HasSubstr("layer.1.up.input_range"));
    }
  }
  const PairFile blank = parse_pair_file(folder.write("blank.tsv", "\t\n \t\n"));
  EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { calibrate(wide, blank, model); }),
              HasSubstr("blank.tsv: no sentence has tokens"));
  ConvertedModel ids_only = convert(xsr_tensors());
  EXPECT_THAT(message_of(XSR_STATUS_INVALID_ARGUMENT,
                         [&] {
                           const ConvertedModel same = ids_only;
                           calibrate(same, corpus, ids_only);
                         }),
              HasSubstr("give --spm"));
}

// ---- inspect and check ----

TEST(Inspect, checkpoints_and_xsr_files) {
  const Folder folder;
  const auto tensors = xsr_tensors();
  const std::string text =
      inspect_file(folder.write("m.safetensors", safetensors_file(tensors, R"({"k":"v"})")));
  EXPECT_THAT(text, HasSubstr("safetensors"));
  EXPECT_THAT(text, HasSubstr("k = v"));
  EXPECT_THAT(text, HasSubstr("model.transform.dense.bias"));
  EXPECT_THAT(text, HasSubstr("[40, 24]"));
  const ConvertedModel model = convert(tensors);
  const std::string path = folder / "m.xsr";
  write_xsr_file(path, model.config, model.sources(), model.tokenizer, model.provenance);
  const std::string xsr = inspect_file(path);
  EXPECT_THAT(xsr, HasSubstr("num_heads            3"));
  EXPECT_THAT(xsr, HasSubstr("layer.1.qkv.weight"));
  EXPECT_THAT(xsr, HasSubstr("panels32"));
  EXPECT_THAT(check_xsr_file(path), HasSubstr("checksums hold"));
}

TEST(Inspect, check_finds_damage_and_nan) {
  const Folder folder;
  ConvertedModel model = convert(xsr_tensors());
  const std::string path = folder / "m.xsr";
  write_xsr_file(path, model.config, model.sources(), model.tokenizer, model.provenance);
  std::string bytes = read_file(path);
  const auto file = XsrFile::open(path);
  bytes[file->find("layer.1.down.weight")->offset + 5] ^= 4;
  const std::string damaged = folder.write("damaged.xsr", bytes);
  EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { check_xsr_file(damaged); }),
              HasSubstr("layer.1.down.weight"));
  for (auto& t : model.tensors) {
    if (t.name == "layer.0.up.bias") std::memcpy(t.data.data() + 12, "\0\0\xc0\x7f", 4);
  }
  write_xsr_file(path, model.config, model.sources(), model.tokenizer, model.provenance);
  EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { check_xsr_file(path); }),
              HasSubstr("layer.0.up.bias has NaN at element 3"));
  const auto spoil = [&](DType dtype, const std::string& name) {
    ConvertOptions o = options_for_test();
    o.dtype = dtype;
    ConvertedModel spoilt = convert(xsr_tensors(), o);
    for (auto& t : spoilt.tensors) {
      if (t.name != name) continue;
      if (dtype == DType::kI8) {
        t.scales[2] = std::numeric_limits<float>::infinity();
      } else {
        std::memcpy(&t.data[t.data.size() - 4], "\0\0\xc0\x7f", 4);
      }
    }
    write_xsr_file(path, spoilt.config, spoilt.sources(), "", spoilt.provenance);
    return message_of(XSR_STATUS_BAD_FILE, [&] { check_xsr_file(path); });
  };
  EXPECT_THAT(spoil(DType::kF32, "embedding.token"),
              HasSubstr("embedding.token has NaN at element 959"));  // the last of 40 x 24
  EXPECT_THAT(spoil(DType::kI8, "layer.1.up.weight"),
              HasSubstr("layer.1.up.weight has infinity at element 2"));
}

// ---- the shipped model ----

TEST(Models, the_shipped_model_is_what_its_manifest_says) {
  const auto manifest =
      nlohmann::json::parse(read_file(kSource / "models/xsr-multi.manifest.json"));
  const std::string path = (kSource / "models" / manifest["file"].get<std::string>()).string();
  const std::string bytes = read_file(path);
  EXPECT_EQ(bytes.size(), manifest["size"]);
  EXPECT_EQ(sha256_hex(as_span(bytes)), manifest["sha256"].get<std::string>());
  EXPECT_THAT(check_xsr_file(path), HasSubstr("checksums hold"));
  const auto file = XsrFile::open(path);
  const ModelConfig& c = file->config();
  EXPECT_EQ(c.num_layers, manifest["num_layers"]);
  EXPECT_EQ(c.hidden_size, manifest["hidden_size"]);
  EXPECT_EQ(c.num_heads, manifest["num_heads"]);
  EXPECT_EQ(c.intermediate_size, manifest["intermediate_size"]);
  EXPECT_EQ(c.vocab_size, manifest["vocab_size"]);
  EXPECT_EQ(c.max_seq_len, manifest["max_seq_len"]);
  EXPECT_TRUE(c.lowercase);
  EXPECT_EQ(c.tokenizer, TokenizerKind::kSentencePiece);
  EXPECT_THAT(file->tokenizer_tables(),
              testing::ElementsAreArray(make_tokenizer_tables(file->tokenizer())));
  const auto provenance = nlohmann::json::parse(file->provenance());
  EXPECT_EQ(provenance["inputs"], manifest["inputs"]);
  EXPECT_EQ(provenance["steps"], manifest["stages"].back()["steps"]);
  EXPECT_EQ(provenance["license"], read_file(kSource / "models/xsr-multi.LICENSE.txt"));
}

// ---- from one .xsr file to another ----

/// Writes a model of random weights in `dtype`.
std::string write_model_file(const Folder& folder, const std::string& name, DType dtype) {
  ConvertOptions o = options_for_test();
  o.dtype = dtype;
  o.license = "CC0";
  const ConvertedModel model = convert(xsr_tensors(), o);
  const std::string path = folder / name;
  write_xsr_file(path, model.config, model.sources(), model.tokenizer, model.provenance);
  return path;
}

TEST(Retype, gives_what_converting_the_same_values_gives) {
  const Folder folder;
  for (const DType from : {DType::kF32, DType::kBF16, DType::kF16}) {
    // A checkpoint whose weights are the ones that the file holds.
    auto rounded_tensors = xsr_tensors();
    for (NamedTensor& t : rounded_tensors) {
      if (t.shape.size() != 2) continue;
      std::vector<float> values(t.data.size() / sizeof(float));
      std::memcpy(values.data(), t.data.data(), t.data.size());
      for (float& v : values) v = rounded(v, from);
      t.data = bytes_of(values);
    }
    const std::string path = write_model_file(folder, "source.xsr", from);
    const FinishedModel source(path);
    for (const DType to : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
      ConvertOptions o = options_for_test();
      o.dtype = to;
      const ConvertedModel expected = convert(rounded_tensors, o), found = source.retyped(to);
      ASSERT_EQ(found.tensors.size(), expected.tensors.size());
      for (size_t i = 0; i < found.tensors.size(); ++i) {
        const auto &a = found.tensors[i], &b = expected.tensors[i];
        EXPECT_EQ(a.name, b.name);
        EXPECT_EQ(a.dtype, b.dtype) << a.name;
        EXPECT_EQ(a.dims, b.dims) << a.name;
        EXPECT_EQ(a.data, b.data) << a.name << " " << to_string(from) << " to " << to_string(to);
        EXPECT_EQ(a.scales, b.scales) << a.name;
      }
      EXPECT_EQ(found.config.num_heads, 3);
    }
  }
  TextModel text;
  const ConvertedModel model = text.converted(DType::kF32);
  write_xsr_file(folder / "text.xsr", model.config, model.sources(), model.tokenizer, "{}");
  const ConvertedModel narrow = FinishedModel(folder / "text.xsr").retyped(DType::kBF16);
  EXPECT_TRUE(narrow.tokenizer == text.options.sentencepiece);
}

TEST(Retype, provenance_keeps_its_history) {
  const Folder folder;
  const std::string path = write_model_file(folder, "first.xsr", DType::kF32);
  const ConvertedModel narrow = FinishedModel(path).retyped(DType::kBF16);
  const std::string second = folder / "second.xsr";
  auto measured = nlohmann::json::parse(narrow.provenance);
  measured["quality"] = "of bf16";
  write_xsr_file(second, narrow.config, narrow.sources(), "", measured.dump());
  const auto json = nlohmann::json::parse(FinishedModel(second).retyped(DType::kI8).provenance);
  EXPECT_EQ(json["license"], "CC0");
  EXPECT_EQ(json["source"]["file"], "model.safetensors");
  EXPECT_EQ(json["dtype"], "i8");
  EXPECT_FALSE(json.contains("quality"));
  ASSERT_EQ(json["retyped"].size(), 2u);
  EXPECT_EQ(json["retyped"][0]["source"]["file"], "first.xsr");
  EXPECT_EQ(json["retyped"][1]["source"]["sha256"], sha256_hex(as_span(read_file(second))));
}

TEST(Retype, provenance_that_is_nested_too_deep_is_kept_as_text) {
  const Folder folder;
  const ConvertedModel model = convert(xsr_tensors());
  std::string deep;
  for (int i = 0; i < 200'000; ++i) deep += "{\"a\":";
  deep += "1" + std::string(200'000, '}');
  write_xsr_file(folder / "deep.xsr", model.config, model.sources(), "", deep);
  const ConvertedModel narrow = FinishedModel(folder / "deep.xsr").retyped(DType::kBF16);
  EXPECT_TRUE(nlohmann::json::parse(narrow.provenance)["original"] == deep);
}

TEST(Retype, i8_damage_and_what_does_not_fit_are_refused) {
  const Folder folder;
  const std::string i8 = write_model_file(folder, "i8.xsr", DType::kI8);
  EXPECT_THAT(message_of(XSR_STATUS_UNSUPPORTED, [&] { FinishedModel(i8).retyped(DType::kF32); }),
              HasSubstr("embedding.token is i8, expected f32, f16 or bf16: take the file that"));
  std::string bytes = read_file(write_model_file(folder, "f32.xsr", DType::kF32));
  bytes[bytes.size() - 65] ^= 1;
  const std::string damaged = folder.write("damaged.xsr", bytes);
  EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { FinishedModel(damaged).retyped(DType::kI8); }),
              HasSubstr("damaged.xsr: "));
  ConvertedModel incomplete = convert(xsr_tensors());
  std::erase_if(incomplete.tensors, [](const auto& t) { return t.name == "layer.1.up.bias"; });
  const std::string path = folder / "incomplete.xsr";
  write_xsr_file(path, incomplete.config, incomplete.sources(), "", incomplete.provenance);
  EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { FinishedModel source(path); }),
              HasSubstr("layer.1.up.bias"));
  // What is not copied is not left out either.
  ConvertedModel more = convert(xsr_tensors());
  ConvertedModel::Tensor range = more.tensors[2];
  range.name = "layer.1.up.input_range";
  range.dims = {2};
  range.data = {0, 0, 0x80, 0xbf, 0, 0, 0x80, 0x3f};  // -1, 1
  more.tensors.push_back(range);
  write_xsr_file(path, more.config, more.sources(), "", more.provenance);
  EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { FinishedModel(path).retyped(DType::kBF16); }),
              HasSubstr("tensor layer.1.up.input_range is unexpected in family xsr"));
  const float wide = 70000;
  ConvertedModel with_wide_bias = convert(xsr_tensors());
  for (ConvertedModel::Tensor& t : with_wide_bias.tensors) {
    if (t.name == "layer.1.up.bias") std::memcpy(t.data.data(), &wide, sizeof wide);
  }
  write_xsr_file(path, with_wide_bias.config, with_wide_bias.sources(), "",
                 with_wide_bias.provenance);
  EXPECT_FALSE(FinishedModel(path).retyped(DType::kF16).tensors.empty()) << "it stays in f32";
  for (const float value : {1e6f, std::numeric_limits<float>::quiet_NaN()}) {
    ConvertedModel model = convert(xsr_tensors());
    std::memcpy(model.tensors[0].data.data() + 4, &value, sizeof value);
    const std::string path = folder / "large.xsr";
    write_xsr_file(path, model.config, model.sources(), "", model.provenance);
    EXPECT_THAT(message_of(XSR_STATUS_BAD_FILE, [&] { FinishedModel(path).retyped(DType::kF16); }),
                HasSubstr("embedding.token has " + std::string(value == value ? "1000000" : "nan") +
                          " at [0, 1], which is not finite in f16"));
  }
}

// ---- the command line ----

class CommandLine : public testing::Test {
 protected:
  void SetUp() override {
    tool_ = (fs::path(XSR_BINARY_DIR) / "converter" / "xsr-convert").string();
    if (!fs::exists(tool_)) GTEST_SKIP() << tool_ << " is not built";
    input_ = folder_.write("in.safetensors", safetensors_file(xsr_tensors()));
  }
  /// The exit status; what was written is in out_ and err_.
  int run(const std::string& arguments) {
    const int status = std::system(
        (tool_ + " " + arguments + " >" + (folder_ / "out") + " 2>" + (folder_ / "err")).c_str());
    out_ = read_file(folder_ / "out");
    err_ = read_file(folder_ / "err");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  Folder folder_;
  std::string tool_, input_, out_, err_;
};

TEST_F(CommandLine, converts_twice_to_the_same_bytes) {
  const std::string a = folder_ / "a.xsr", b = folder_ / "b.xsr";
  EXPECT_EQ(run(input_ + " -o " + a + " --heads 3 --dtype bf16 --license 'CC0 1.0'"), 0) << err_;
  EXPECT_EQ(out_, "") << "data alone goes to standard output";
  EXPECT_THAT(err_, HasSubstr("the model takes token ids only"));
  EXPECT_THAT(err_, HasSubstr("model.transform.dense.weight"));
  EXPECT_EQ(run(input_ + " -o " + b + " --heads 3 --dtype bf16 --license 'CC0 1.0'"), 0) << err_;
  EXPECT_EQ(read_file(a), read_file(b));
  EXPECT_EQ(run("--check " + a), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("checksums hold"));
  EXPECT_EQ(run("--inspect " + a), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("lowercase            true"));
  EXPECT_THAT(out_, HasSubstr("CC0 1.0"));
  EXPECT_EQ(run(input_ + " -o " + b + " --heads 3 --no-lowercase --activation relu --license " +
                folder_.write("license.txt", "terms in a file")),
            0)
      << err_;
  EXPECT_EQ(run("--inspect " + b), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("lowercase            false"));
  EXPECT_THAT(out_, HasSubstr("activation           relu"));
  EXPECT_THAT(out_, HasSubstr("terms in a file"));
  for (const auto& [name, activation] : {std::pair{"swish", Activation::kSwish},
                                         {"gelu", Activation::kGeluErf},
                                         {"gelu-tanh", Activation::kGeluTanh},
                                         {"relu", Activation::kRelu},
                                         {"tanh", Activation::kTanh}}) {
    EXPECT_EQ(run(input_ + " -o " + b + " --heads 3 --activation " + name), 0) << err_;
    EXPECT_EQ(XsrFile::open(b)->config().activation, activation) << name;
  }
  auto prefixed = xsr_tensors();
  for (NamedTensor& t : prefixed) t.name = "student." + t.name;
  const std::string student = folder_.write("student.safetensors", safetensors_file(prefixed));
  EXPECT_EQ(run(student + " -o " + b + " --heads 3 --prefix student."), 0) << err_;
}

TEST_F(CommandLine, quality_is_printed_and_kept_in_the_file) {
  TextModel text;
  const std::string input =
      folder_.write("text.safetensors", safetensors_file(xsr_tensors(text.shape)));
  const std::string output = folder_ / "q.xsr";
  const std::string pairs = folder_.write("pairs.tsv", text.corpus);
  const std::string base =
      input + " --heads 3 --spm " + (kSource / "tests/data/tiny-bpe.spm.model").string() + " -o ";
  const std::string convert = base + output + " --quality pairs=" + pairs;
  EXPECT_EQ(run(convert + " --dtype int8"), 0) << err_;
  EXPECT_EQ(out_, "");
  EXPECT_THAT(err_, HasSubstr("quality: pairs, " + std::to_string(text.first.size()) +
                              " pairs, i8 weights computed in int8 by "));
  const auto quality = nlohmann::json::parse(XsrFile::open(output)->provenance()).at("quality");
  const auto tables = tokenizer_tables_for_file(text.options.sentencepiece);
  EXPECT_TRUE(std::ranges::equal(XsrFile::open(output)->tokenizer_tables(), tables));
  EXPECT_FALSE(tables.empty());
  EXPECT_EQ(quality.at("corpus"), "pairs");
  EXPECT_EQ(quality.at("compute"), "int8");
  EXPECT_EQ(quality.at("pairs"), text.first.size());
  EXPECT_EQ(quality.at("sentences"), 2 * text.first.size());
  const auto& cosines = quality.at("cosine_to_f32");
  const Quality expected = measure_quality(text.converted(DType::kF32), text.converted(DType::kI8),
                                           DType::kI8, parse_pair_file(pairs));
  EXPECT_EQ(cosines.at("mean"), expected.cosine_mean);
  EXPECT_GT(cosines.at("minimum").get<double>(), 0.5);
  EXPECT_LE(cosines.at("minimum"), cosines.at("quantile_1_percent"));
  EXPECT_LT(cosines.at("minimum"), cosines.at("mean"));
  EXPECT_LT(cosines.at("mean"), 1);
  for (const char* when : {"before", "after"}) {
    for (const char* way : {"1_to_2", "2_to_1"}) {
      const double share = quality.at("precision_at_1").at(when).at(way);
      EXPECT_GE(share, 0);
      EXPECT_LE(share, 1);
    }
  }
  EXPECT_EQ(run(convert + " --dtype int8 --calibrate " + pairs), 0) << err_;
  const auto calibrated = nlohmann::json::parse(XsrFile::open(output)->provenance());
  EXPECT_EQ(calibrated.at("calibration").at("sentences"), 2 * text.first.size());
  EXPECT_NE(calibrated.at("quality").at("cosine_to_f32"), cosines);
  EXPECT_EQ(run("--check " + output), 0) << err_;
  const std::string model = read_file(output);
  const std::string gz = folder_.write("pairs.tsv.gz", test::gzip(text.corpus));
  const std::string zst = folder_.write("pairs.tsv.zst", test::zstd(text.corpus));
  EXPECT_EQ(run(base + output + " --quality " + gz + " --dtype int8 --calibrate " + zst), 0)
      << err_;
  EXPECT_TRUE(read_file(output) == model) << "a packed corpus is the same corpus";
  folder_.write("pairs.tsv.gz", read_file(gz).substr(0, 100));
  EXPECT_EQ(run(base + output + " --dtype int8 --quality " + gz), 1);
  EXPECT_THAT(err_, HasSubstr("pairs.tsv.gz: the gzip data ends early, behind byte 100 of 100"));
  EXPECT_TRUE(read_file(output) == model);
  EXPECT_EQ(run(convert + " --dtype bf16 --calibrate " + pairs), 2);
  EXPECT_EQ(run(convert), 2) << "f32 has nothing to compare";
  EXPECT_THAT(err_, HasSubstr("--quality"));
  EXPECT_EQ(run(convert + ".missing --dtype int8"), 1);
  EXPECT_EQ(run(base + pairs + " --dtype int8 --quality " + pairs), 1);
  EXPECT_THAT(err_, HasSubstr("pairs.tsv: is an input too"));
  EXPECT_EQ(read_file(pairs), text.corpus) << err_;
}

TEST_F(CommandLine, retypes_a_finished_model) {
  const std::string wide = folder_ / "wide.xsr", narrow = folder_ / "narrow.xsr";
  ASSERT_EQ(run(input_ + " -o " + wide + " --heads 3"), 0) << err_;
  EXPECT_EQ(run(wide + " -o " + narrow + " --dtype int8"), 0) << err_;
  EXPECT_THAT(err_, HasSubstr("weights in i8"));
  EXPECT_EQ(run("--check " + narrow), 0) << err_;
  const std::string kept = read_file(narrow);
  EXPECT_EQ(run(narrow + " -o " + wide + ".2 --dtype bf16"), 1);
  EXPECT_FALSE(fs::exists(wide + ".2"));
  EXPECT_EQ(run(wide + " -o " + wide + " --dtype int8"), 1);
  EXPECT_THAT(err_, HasSubstr("is an input too"));
  EXPECT_EQ(run(wide + " -o " + narrow + " --heads 3"), 2);
  EXPECT_THAT(err_, HasSubstr("a .xsr file keeps what it has"));
  EXPECT_EQ(read_file(narrow), kept);
}

TEST_F(CommandLine, failures_exit_with_1_and_leave_the_output_alone) {
  const std::string kept = folder_.write("kept.xsr", "kept");
  EXPECT_EQ(run(input_ + " -o " + kept), 1);
  EXPECT_THAT(err_, testing::StartsWith("xsr-convert: " + input_ +
                                        ": hidden_size 24 is no multiple of 64"));
  EXPECT_EQ(read_file(kept), "kept");
  EXPECT_EQ(run(input_ + " --heads 3 -o " + input_), 1);
  EXPECT_THAT(err_, HasSubstr("is an input too"));
  EXPECT_EQ(run(input_ + " --heads 3 --spm " + kept + " -o " + kept), 1);
  EXPECT_THAT(err_, HasSubstr("kept.xsr: is an input too"));
  EXPECT_EQ(run(input_ + " --heads 3 --license " + kept + " -o " + kept), 1);
  EXPECT_THAT(err_, HasSubstr("kept.xsr: is an input too"));
  fs::create_symlink("loop", folder_ / "loop");
  EXPECT_EQ(run(input_ + " --heads 3 --license " + (folder_ / "loop") + " -o " + kept), 1);
  EXPECT_THAT(err_, HasSubstr("loop: cannot tell whether this names a file: Too many levels"));
  EXPECT_EQ(run(input_ + " --heads 3 --license " + std::string(5000, 'x') + " -o " + kept + "2"), 0)
      << "terms that are no name";
  for (const std::string& missing : {folder_ / "no-terms", std::string("no-terms.txt")}) {
    EXPECT_EQ(run(input_ + " --heads 3 --license " + missing + " -o " + kept), 1);
    EXPECT_THAT(err_, HasSubstr(missing + ": no such file; give the path of one"));
  }
  EXPECT_EQ(run(input_ + " --heads 3 --license https://example.org/by/4.0/ -o " + kept + "2"), 0);
  const std::string terms = folder_.write("terms", "libert\xe9\n");
  EXPECT_EQ(run(input_ + " --heads 3 --license " + terms + " -o " + kept), 1);
  EXPECT_THAT(err_, HasSubstr("--license: " + terms + " is not UTF-8"));
  EXPECT_EQ(read_file(kept), "kept");
  EXPECT_EQ(run(input_ + " --heads 3 -o -"), 1);
  EXPECT_THAT(err_, HasSubstr("-o -: a model goes to a file"));
  EXPECT_EQ(run("/nonexistent -o " + kept), 1);
  EXPECT_EQ(run(input_ + " --heads 3 -o /nonexistent/out.xsr"), 1);
  EXPECT_EQ(run("--check " + input_), 1);
  const std::string header =
      R"({"\u001b[31m\u007f":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})";
  const std::string hostile = folder_.write(
      "hostile", std::string{static_cast<char>(header.size())} + std::string(7, '\0') + header);
  EXPECT_EQ(run("--inspect " + hostile), 1);
  EXPECT_THAT(err_, HasSubstr("hostile: ?[31m?: data_offsets [0, 4] reach beyond"))
      << "a file's bytes must not act on the terminal";
}

TEST_F(CommandLine, a_full_disk_is_told_and_leaves_nothing) {
  const std::string output = folder_ / "full.xsr", tool = tool_;
  tool_ = "ulimit -f 1; " + tool;  // the limit on a file's size plays the full disk
  EXPECT_EQ(run(input_ + " --heads 3 -o " + output), 1);
  EXPECT_THAT(err_, HasSubstr("full.xsr.partial: cannot write after "));
  EXPECT_FALSE(fs::exists(output));
  EXPECT_FALSE(fs::exists(output + ".partial"));
  for (const std::string& what : {"--inspect " + input_, std::string("--help")}) {
    const std::string command = tool + " " + what + " >/dev/full 2>" + (folder_ / "err");
    EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 1) << what;
    EXPECT_THAT(read_file(folder_ / "err"), HasSubstr("xsr-convert: standard output: cannot write"))
        << what;
  }
}

TEST_F(CommandLine, wrong_usage_exits_with_2) {
  EXPECT_EQ(run(""), 2);
  EXPECT_EQ(run(input_), 2);
  EXPECT_EQ(run(input_ + " -o ''"), 2);
  EXPECT_THAT(err_, HasSubstr("IN and -o OUT.xsr"));
  EXPECT_EQ(run("'' -o x"), 2);
  EXPECT_EQ(run(input_ + " -o x --dtype f8"), 2);
  EXPECT_EQ(run(input_ + " -o x --heads 0"), 2);
  EXPECT_THAT(err_, HasSubstr("--heads: Value 0 not in range 1 to 65536"));
  EXPECT_EQ(run(input_ + " -o x --family t5"), 2);
  EXPECT_EQ(run("--inspect " + input_ + " --check " + input_), 2);
  EXPECT_EQ(run("--unknown"), 2);
  // What would be left unread.
  EXPECT_EQ(run("--inspect " + input_ + " --dtype int8"), 2);
  EXPECT_THAT(err_, HasSubstr("--inspect excludes --dtype"));
  EXPECT_EQ(run("--check " + input_ + " --quality x.tsv"), 2);
  for (const std::string option : {"--spm", "--quality", "--calibrate"}) {
    EXPECT_EQ(run(input_ + " -o x --heads 3 --dtype int8 " + option + " ''"), 2) << option;
    EXPECT_THAT(err_, HasSubstr(option + ": names no file")) << option;
  }
  // A number of the enumeration is no name.
  EXPECT_EQ(run(input_ + " -o x --heads 3 --dtype 3"), 2);
  EXPECT_THAT(err_, HasSubstr("--dtype: 3 not in {bf16,f16,f32,i8,int8}"));
  EXPECT_EQ(run("--help"), 0);
  EXPECT_EQ(run("--version"), 0);
}

}  // namespace
}  // namespace xsr
