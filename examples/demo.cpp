// Embeds a file of sentence pairs and looks for every sentence's translation among all sentences of
// the other language, by cosine:
//   xsr-demo [--model MODEL.xsr] [--pairs PAIRS.tsv] [--threads N]
// PAIRS.tsv holds one pair a line, the two sentences separated by a tab.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>
#include <xsr/xsr.hpp>

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Options {
  std::string model = "models/xsr-multi.xsr";
  std::string pairs = "examples/data/tatoeba.en-fr.tsv";
  int num_threads = 0;
};

struct Pairs {
  std::vector<std::string> left, right;
};

Pairs read_pairs(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  Pairs pairs;
  std::string line;
  while (std::getline(file, line)) {
    const size_t tab = line.find('\t');
    if (tab == std::string::npos) {
      throw std::runtime_error(path + ":" + std::to_string(pairs.left.size() + 1) +
                               ": found no tab, expected two sentences separated by one");
    }
    pairs.left.push_back(line.substr(0, tab));
    pairs.right.push_back(line.substr(tab + 1));
  }
  if (pairs.left.empty()) throw std::runtime_error(path + ": holds no pairs");
  return pairs;
}

std::string cpu_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line)) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

/// Scales every row to length 1, so that dot products are cosines. Zero rows stay zero.
void normalize_rows(std::vector<float>& rows, size_t size) {
  for (size_t start = 0; start < rows.size(); start += size) {
    double sum = 0;
    for (size_t i = 0; i < size; ++i) sum += double{rows[start + i]} * rows[start + i];
    const float scale = sum > 0 ? static_cast<float>(1 / std::sqrt(sum)) : 0;
    for (size_t i = 0; i < size; ++i) rows[start + i] *= scale;
  }
}

float dot(const float* a, const float* b, size_t size) {
  float sum = 0;
  for (size_t i = 0; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

/// Every pair of sentences' cosine: [n, n], row: left, column: right.
std::vector<float> cosines(const std::vector<float>& left, const std::vector<float>& right,
                           size_t count, size_t size) {
  std::vector<float> scores(count * count);
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; j < count; ++j) {
      scores[i * count + j] = dot(&left[i * size], &right[j * size], size);
    }
  }
  return scores;
}

/// For each i the j with the largest score(i, j).
template <class Score>
std::vector<size_t> nearest(size_t count, Score score) {
  std::vector<size_t> best(count, 0);
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 1; j < count; ++j) {
      if (score(i, j) > score(i, best[i])) best[i] = j;
    }
  }
  return best;
}

size_t count_right(const std::vector<size_t>& best) {
  size_t right = 0;
  for (size_t i = 0; i < best.size(); ++i) right += best[i] == i;
  return right;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view flag = argv[i];
    const std::string_view value = i + 1 < argc ? argv[i + 1] : "";
    bool known = !value.empty();
    if (flag == "--model") {
      options.model = value;
    } else if (flag == "--pairs") {
      options.pairs = value;
    } else if (flag == "--threads") {
      const auto [end, error] =
          std::from_chars(value.data(), value.data() + value.size(), options.num_threads);
      known = known && error == std::errc() && end == value.data() + value.size();
    } else {
      known = false;
    }
    if (!known) {
      std::fprintf(stderr, "usage: %s [--model MODEL.xsr] [--pairs PAIRS.tsv] [--threads N]\n",
                   argv[0]);
      std::exit(2);
    }
  }
  return options;
}

void run(const Options& options) {
  const Pairs pairs = read_pairs(options.pairs);
  const size_t count = pairs.left.size();

  const Clock::time_point open_start = Clock::now();
  const xsr::Model model(options.model);
  xsr_session_options session_options = {};
  session_options.num_threads = options.num_threads;
  xsr::Session session(model, session_options);
  const size_t size = session.embedding_size();
  session.embed(std::string_view(pairs.left[0]));
  const double open_seconds = seconds_since(open_start);

  const xsr_model_info info = model.info();
  std::printf("xsr %s on %s, ISA %s, %d thread%s\n", xsr_version_string(), cpu_name().c_str(),
              xsr_isa_string(session.isa()), session.num_threads(),
              session.num_threads() == 1 ? "" : "s");
  std::printf("%s: %d layers x %d, %d heads, vocabulary %d; opened, first vector after %.1f ms\n\n",
              options.model.c_str(), info.num_layers, info.hidden_size, info.num_heads,
              info.vocab_size, 1e3 * open_seconds);

  std::vector<std::string_view> texts(pairs.left.begin(), pairs.left.end());
  texts.insert(texts.end(), pairs.right.begin(), pairs.right.end());
  std::vector<float> left(texts.size() * size);
  std::vector<xsr_text_result> results(texts.size());
  const Clock::time_point embed_start = Clock::now();
  session.embed(texts, left, results);
  const double embed_seconds = seconds_since(embed_start);
  long long num_tokens = 0;
  for (const xsr_text_result& result : results) num_tokens += result.num_tokens;

  normalize_rows(left, size);
  const std::vector<float> right(left.begin() + static_cast<std::ptrdiff_t>(count * size),
                                 left.end());
  left.resize(count * size);
  const std::vector<float> scores = cosines(left, right, count, size);
  const auto score = [&](size_t i, size_t j) { return scores[i * count + j]; };
  const std::vector<size_t> forward = nearest(count, score);
  const std::vector<size_t> backward =
      nearest(count, [&](size_t i, size_t j) { return score(j, i); });

  std::printf("Is a sentence's nearest neighbour in the other language its translation?\n");
  for (const auto& [name, best] :
       {std::pair{"left -> right", &forward}, std::pair{"right -> left", &backward}}) {
    const size_t found = count_right(*best);
    std::printf("  %s  P@1 %5.1f %%  (%zu of %zu)\n", name, 100.0 * double(found) / double(count),
                found, count);
  }

  constexpr size_t kShown = 5;
  std::printf("\nFound, with cosine:\n");
  for (size_t i = 0, shown = 0; i < count && shown < kShown; ++i) {
    if (forward[i] != i || backward[i] != i) continue;
    std::printf("  %.3f  %s\n         %s\n", score(i, i), pairs.left[i].c_str(),
                pairs.right[i].c_str());
    ++shown;
  }
  std::printf("\nMissed: another sentence came closer than the translation (=):\n");
  for (size_t i = 0, shown = 0; i < count && shown < 3; ++i) {
    const size_t j = forward[i];
    if (j == i) continue;
    std::printf("         %s\n  %.3f  %s\n  %.3f= %s\n", pairs.left[i].c_str(), score(i, j),
                pairs.right[j].c_str(), score(i, i), pairs.right[i].c_str());
    ++shown;
  }

  std::printf("\n%zu sentences, %lld tokens, text to vectors in %.1f ms: %.0f vectors/s\n",
              texts.size(), num_tokens, 1e3 * embed_seconds, double(texts.size()) / embed_seconds);
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
    throw std::runtime_error("cannot write to standard output");
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse(argc, argv));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "xsr-demo: %s\n", e.what());
    return 1;
  }
}
