#include "converter/quality.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "converter/provenance.h"
#include "runtime/device/cpu_threads.h"
#include "runtime/error.h"
#include "xsr/xsr.hpp"

namespace xsr {
namespace {

/// Of the embeddings of both sides of a corpus, and how they were made.
struct Embedded {
  std::vector<float> sides[2];
  int32_t size = 0;
  const char* isa = "";
};

Embedded embed(const ConvertedModel& model, xsr_compute compute, const PairLines& lines) {
  size_t bytes = 0;
  const auto file =
      write_xsr_memory(model.config, model.sources(), model.tokenizer, model.provenance, &bytes);
  xsr_session_options options = {};
  options.compute = compute;
  Session session(
      Model(std::span<const std::byte>(reinterpret_cast<const std::byte*>(file.get()), bytes)),
      options);
  Embedded out;
  out.size = static_cast<int32_t>(session.embedding_size());
  const auto side = [&](const std::vector<std::string>& texts) {
    return session.embed(std::vector<std::string_view>(texts.begin(), texts.end()));
  };
  out.sides[0] = side(lines.first);
  out.sides[1] = side(lines.second);
  out.isa = xsr_isa_string(session.isa());
  return out;
}

/// Cosines of rows that are not zero in both.
void add_cosines(const std::vector<float>& a, const std::vector<float>& b, int32_t size,
                 std::vector<double>& cosines) {
  for (size_t row = 0; row < a.size(); row += size) {
    double ab = 0, aa = 0, bb = 0;
    for (int32_t c = 0; c < size; ++c) {
      const double x = a[row + c], y = b[row + c];
      ab += x * y;
      aa += x * x;
      bb += y * y;
    }
    if (aa == 0 && bb == 0) continue;
    cosines.push_back(aa == 0 || bb == 0 ? 0 : ab / std::sqrt(aa * bb));
  }
}

}  // namespace

Quality measure_quality(const ConvertedModel& wide, const ConvertedModel& narrow, DType dtype,
                        const PairFile& corpus) {
  if (narrow.tokenizer.empty()) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "the quality is measured on text, and the model has no tokenizer: give --spm");
  }
  const PairLines lines = read_pairs(corpus);
  const xsr_compute compute = dtype == DType::kBF16 ? XSR_COMPUTE_BF16
                              : dtype == DType::kI8 ? XSR_COMPUTE_INT8
                                                    : XSR_COMPUTE_F32;
  const Embedded before = embed(wide, XSR_COMPUTE_F32, lines);
  const Embedded after = embed(narrow, compute, lines);
  Quality quality;
  quality.corpus = corpus.name;
  quality.dtype = dtype;
  quality.compute = compute == XSR_COMPUTE_BF16   ? "bf16"
                    : compute == XSR_COMPUTE_INT8 ? "int8"
                                                  : "f32";
  quality.isa = after.isa;

  std::vector<double> cosines;
  for (int side : {0, 1}) add_cosines(before.sides[side], after.sides[side], after.size, cosines);
  if (cosines.empty()) {
    throw Error(XSR_STATUS_BAD_FILE, corpus.first + ": no sentence has tokens");
  }
  std::sort(cosines.begin(), cosines.end());
  const auto count = cosines.size();
  quality.sentences = static_cast<int64_t>(count);
  double sum = 0;
  for (double cosine : cosines) sum += cosine;
  quality.cosine_mean = sum / static_cast<double>(count);
  quality.cosine_min = cosines.front();
  quality.cosine_quantile = cosines[(count + 99) / 100 - 1];

  ThreadPool threads(0);
  const auto pairs = static_cast<int64_t>(lines.first.size());
  const auto score = [&](const Embedded& e) {
    return score_retrieval(e.sides[0].data(), e.sides[1].data(), pairs, e.size, threads);
  };
  quality.before = score(before);
  quality.after = score(after);
  return quality;
}

std::string quality_text(const Quality& q) {
  return fmt::format(
      "{}, {} pairs, {} weights computed in {} by {} beside f32: cosine mean {:.8f}, minimum "
      "{:.8f}, 1 % quantile {:.8f}; "
      "P@1 {:.1f} % before, {:.1f} % after (side 1 to 2), {:.1f} % before, {:.1f} % after (2 to 1)",
      q.corpus, q.after.pairs, to_string(q.dtype), q.compute, q.isa, q.cosine_mean, q.cosine_min,
      q.cosine_quantile, 100 * q.before.forward_share(), 100 * q.after.forward_share(),
      100 * q.before.backward_share(), 100 * q.after.backward_share());
}

void record_quality(const Quality& q, ConvertedModel& model) {
  const auto score = [](const RetrievalScore& s) {
    return nlohmann::json{{"1_to_2", s.forward_share()}, {"2_to_1", s.backward_share()}};
  };
  record(model, "quality",
         {{"compute", q.compute},
          {"corpus", q.corpus},
          {"cosine_to_f32",
           {{"mean", q.cosine_mean},
            {"minimum", q.cosine_min},
            {"quantile_1_percent", q.cosine_quantile}}},
          {"isa", q.isa},
          {"pairs", q.after.pairs},
          {"precision_at_1", {{"after", score(q.after)}, {"before", score(q.before)}}},
          {"sentences", q.sentences}});
}

}  // namespace xsr
