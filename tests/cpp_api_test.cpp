// xsr.hpp: the objects own what they hold, spans are checked, failures are exceptions. That the
// embeddings are right is the business of other tests; here they must be those of the C API, bit
// for bit.
#include "xsr/xsr.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <fstream>
#include <memory>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>

#include "tests/support/temp_folder.h"

namespace {

const std::string kModelPath = XSR_SOURCE_DIR "/models/xsr-multi.xsr";
const std::array<std::string_view, 4> kTexts = {"The cat sleeps.", "", "Le chat dort.", "\xff!"};

static_assert(!std::is_copy_constructible_v<xsr::Session>);
static_assert(std::is_nothrow_move_constructible_v<xsr::Session>);
static_assert(std::is_copy_constructible_v<xsr::Model>);

/// The status and message of the exception that f throws; OK when it throws none.
template <class F>
std::pair<xsr_status, std::string> failure(F f) {
  try {
    f();
  } catch (const xsr::Exception& e) {
    return {e.status(), e.what()};
  }
  return {XSR_STATUS_OK, ""};
}

TEST(CppApi, EmbedsAsTheCApiDoes) {
  const xsr::Model model(kModelPath);
  xsr::Session session(model);
  ASSERT_EQ(session.embedding_size(), static_cast<size_t>(model.info().embedding_size));
  const std::vector<float> found = session.embed(kTexts);
  ASSERT_EQ(found.size(), kTexts.size() * session.embedding_size());

  std::vector<xsr_text> texts;
  for (std::string_view text : kTexts) texts.push_back({text.data(), text.size()});
  xsr_session* c_session = nullptr;
  ASSERT_EQ(xsr_session_create(model.get(), nullptr, &c_session, nullptr, 0), XSR_STATUS_OK);
  std::vector<float> expected(found.size());
  const xsr_status status =
      xsr_session_embed_texts(c_session, texts.data(), texts.size(), expected.data(), nullptr);
  xsr_session_destroy(c_session);
  ASSERT_EQ(status, XSR_STATUS_OK);
  EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0);

  const std::vector<float> one = session.embed(kTexts[2]);
  ASSERT_EQ(one.size(), session.embedding_size());
  EXPECT_EQ(std::memcmp(one.data(), &found[2 * one.size()], one.size() * sizeof(float)), 0);
}

/// Two literals in braces are also a begin and an end that a string_view can be made of.
TEST(CppApi, TextsInBracesAreTexts) {
  const xsr::Model model(kModelPath);
  xsr::Session session(model);
  EXPECT_EQ(session.embed({"The cat sleeps.", "Le chat dort."}),
            session.embed(std::vector<std::string_view>{kTexts[0], kTexts[2]}));
  EXPECT_EQ(session.embed({kTexts[0]}), session.embed(kTexts[0]));
}

TEST(CppApi, TokenizeThenEmbedIdsIsEmbed) {
  const xsr::Model model(kModelPath);
  xsr::Session session(model);
  std::vector<int32_t> ids;
  std::vector<size_t> offsets = {0};
  for (std::string_view text : kTexts) {
    const std::vector<int32_t> of_text = session.tokenize(text);
    ids.insert(ids.end(), of_text.begin(), of_text.end());
    offsets.push_back(ids.size());
  }
  ASSERT_GT(ids.size(), 3u);
  std::vector<float> by_ids(kTexts.size() * session.embedding_size());
  std::vector<float> by_text(by_ids.size());
  std::vector<xsr_text_result> results(kTexts.size());
  std::vector<xsr_text_result> id_results(kTexts.size());
  session.embed_ids(ids, offsets, by_ids, id_results);
  session.embed(kTexts, by_text, results);
  EXPECT_EQ(std::memcmp(by_ids.data(), by_text.data(), by_ids.size() * sizeof(float)), 0);
  for (size_t i = 0; i < kTexts.size(); ++i) {
    EXPECT_EQ(results[i].num_tokens, static_cast<int32_t>(offsets[i + 1] - offsets[i])) << i;
    EXPECT_EQ(results[i].empty, kTexts[i].empty()) << i;
    EXPECT_EQ(id_results[i].num_tokens, results[i].num_tokens) << i;
  }
  EXPECT_EQ(results[3].replaced_bytes, 1u);
}

TEST(CppApi, ATextMayHaveMoreTokensThanBytes) {
  const xsr::Model model(kModelPath);
  xsr::Session session(model);
  const std::string_view text = "\uFDFA\uFDFA\uFDFA";  // NFKC: four words of Arabic each
  xsr_text_result result = {};
  const std::vector<int32_t> ids = session.tokenize(text, &result);
  ASSERT_GT(ids.size(), text.size() + 2) << "or this says nothing";
  EXPECT_EQ(result.num_tokens, static_cast<int32_t>(ids.size()));
  std::vector<float> by_ids(session.embedding_size());
  session.embed_ids(ids, std::vector<size_t>{0, ids.size()}, by_ids);
  EXPECT_EQ(by_ids, session.embed(text));
}

TEST(CppApi, SessionKeepsItsModelOpen) {
  std::optional<xsr::Model> model(kModelPath);
  xsr::Session first(*model);
  const std::vector<float> before = first.embed(kTexts[0]);
  model.reset();
  xsr::Session second = std::move(first);
  EXPECT_EQ(second.embed(kTexts[0]), before);
}

TEST(CppApi, OptionsReachTheSession) {
  const xsr::Model model(kModelPath);
  xsr_session_options options = {};
  options.isa = XSR_ISA_REF;
  options.num_threads = 3;
  const xsr::Session session(model, options);
  EXPECT_EQ(session.isa(), XSR_ISA_REF);
  EXPECT_EQ(session.num_threads(), 3);
}

TEST(CppApi, OpensFromMemoryAndVerifiesWhereItIsTo) {
  std::ifstream file(kModelPath, std::ios::binary | std::ios::ate);
  const auto size = static_cast<size_t>(file.tellg());
  const std::unique_ptr<std::byte[], void (*)(std::byte*)> data(
      static_cast<std::byte*>(::operator new[](size, std::align_val_t(64))),
      [](std::byte* p) { ::operator delete[](p, std::align_val_t(64)); });
  file.seekg(0);
  ASSERT_TRUE(file.read(reinterpret_cast<char*>(data.get()), static_cast<std::streamsize>(size)));
  const xsr::Model model(std::span<const std::byte>(data.get(), size), /*verify_checksums=*/true);
  model.verify();
  EXPECT_EQ(xsr::Session(model).embed(kTexts[0]),
            xsr::Session(xsr::Model(kModelPath)).embed(kTexts[0]));
  // One flipped bit in the last tensor: opening is fine, verifying is not.
  data[size - 64] ^= std::byte{1};
  const xsr::Model damaged(std::span<const std::byte>(data.get(), size));
  EXPECT_EQ(failure([&] { damaged.verify(); }).first, XSR_STATUS_BAD_FILE);
  EXPECT_EQ(failure([&] {
              xsr::Model({data.get(), size}, /*verify_checksums=*/true);
            }).first,
            XSR_STATUS_BAD_FILE);
  const xsr::test::TempFolder folder;
  const std::string path = folder / "damaged.xsr";
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(data.get()), static_cast<std::streamsize>(size));
  EXPECT_EQ(failure([&] { const xsr::Model as_it_stands(path); }).first, XSR_STATUS_OK);
  EXPECT_EQ(failure([&] { const xsr::Model verified(path, /*verify_checksums=*/true); }).first,
            XSR_STATUS_BAD_FILE);
}

TEST(CppApi, TokenizeTellsWhatBecameOfTheText) {
  const xsr::Model model(kModelPath);
  xsr::Session session(model);
  std::string longer;
  for (int32_t i = 0; i <= model.info().max_seq_len; ++i) longer += "cat ";
  xsr_text_result result = {};
  EXPECT_EQ(session.tokenize(longer, &result).size(),
            static_cast<size_t>(model.info().max_seq_len));
  EXPECT_EQ(result.truncated, 1);
  EXPECT_GT(session.tokenize("\xff cat", &result).size(), 0u);
  EXPECT_EQ(result.truncated, 0);
  EXPECT_EQ(result.replaced_bytes, 1u);
}

TEST(CppApi, FailuresCarryStatusAndMessage) {
  // Where the library has no message the status speaks.
  EXPECT_STREQ(xsr::Exception(XSR_STATUS_IO, "").what(), xsr_status_string(XSR_STATUS_IO));
  const auto [status, message] = failure([] { xsr::Model("/no/such/model.xsr"); });
  EXPECT_EQ(status, XSR_STATUS_IO);
  EXPECT_NE(message.find("/no/such/model.xsr"), std::string::npos) << message;

  const xsr::Model model(kModelPath);
  xsr_session_options options = {};
  options.num_threads = -1;
  EXPECT_EQ(failure([&] { xsr::Session(model, options); }).first, XSR_STATUS_INVALID_ARGUMENT);
  options.num_threads = 1;
  options.compute = XSR_COMPUTE_TF32;
  EXPECT_EQ(failure([&] { xsr::Session(model, options); }).first, XSR_STATUS_UNSUPPORTED);

  xsr::Session session(model);
  const int32_t beyond[] = {model.info().vocab_size};
  const size_t offsets[] = {0, 1};
  std::vector<float> embeddings(session.embedding_size(), 7.0f);
  const auto [id_status, id_message] =
      failure([&] { session.embed_ids(beyond, offsets, embeddings); });
  EXPECT_EQ(id_status, XSR_STATUS_INVALID_ARGUMENT);
  EXPECT_NE(id_message.find(std::to_string(beyond[0])), std::string::npos) << id_message;
  EXPECT_EQ(embeddings, std::vector<float>(session.embedding_size(), 7.0f));
}

TEST(CppApi, SpansOfTheWrongSizeAreRefused) {
  const xsr::Model model(kModelPath);
  xsr::Session session(model);
  std::vector<float> embeddings(kTexts.size() * session.embedding_size());
  std::vector<xsr_text_result> results(kTexts.size());
  const std::span<float> all(embeddings);
  const int32_t three_ids[] = {5, 6, 7};
  const std::span<const int32_t> ids(three_ids, 2);
  const size_t beyond[] = {0, 3};
  EXPECT_EQ(failure([&] { session.embed(kTexts, all.first(all.size() - 1)); }).first,
            XSR_STATUS_INVALID_ARGUMENT);
  EXPECT_EQ(failure([&] { session.embed(kTexts, all, std::span(results).first(1)); }).first,
            XSR_STATUS_INVALID_ARGUMENT);
  EXPECT_EQ(failure([&] { session.embed_ids(ids, {}, {}); }).first, XSR_STATUS_INVALID_ARGUMENT);
  EXPECT_EQ(
      failure([&] { session.embed_ids(ids, beyond, all.first(session.embedding_size())); }).first,
      XSR_STATUS_INVALID_ARGUMENT);
  std::vector<float> one_more(all.size() + 1);
  EXPECT_EQ(failure([&] { session.embed(kTexts, one_more); }).first, XSR_STATUS_INVALID_ARGUMENT);
  session.embed(kTexts, all, results);
}

}  // namespace
