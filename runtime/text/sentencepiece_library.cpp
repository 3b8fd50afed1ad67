#include "runtime/text/sentencepiece_library.h"

#include <sentencepiece_processor.h>

#include <exception>
#include <mutex>
#include <new>
#include <string>

#include "runtime/text/sentencepiece_model.h"

// In the library but not in its installed header: its messages go to stderr, and xsr never prints.
namespace sentencepiece::logging {
void SetMinLogLevel(int level);
}

namespace xsr {
namespace {

constexpr int kOnlyFatal = 3;

}  // namespace

std::unique_ptr<sentencepiece::SentencePieceProcessor> load_sentencepiece_library(
    std::string_view blob) {
  static std::once_flag quiet;
  std::call_once(quiet, [] { sentencepiece::logging::SetMinLogLevel(kOnlyFatal); });
  const std::string model = without_normalizer(blob);
  std::string problem;
  auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
  try {
    const auto status =
        processor->LoadFromSerializedProto(absl::string_view(model.data(), model.size()));
    if (!status.ok()) problem = status.error_message();
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& e) {  // its trie builder throws
    problem = e.what();
  }
  if (!problem.empty()) bad_sentencepiece_model(problem);
  return processor;
}

}  // namespace xsr
