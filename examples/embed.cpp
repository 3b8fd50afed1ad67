// Embeds the sentences given on the command line and prints the cosine of each with the first:
//   embed MODEL.xsr "A black cat." "Un chat noir." "Il pleut."
#include <cmath>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string_view>
#include <vector>
#include <xsr/xsr.hpp>

static double cosine(const float* a, const float* b, size_t size) {
  double dot = 0, norm_a = 0, norm_b = 0;
  for (size_t i = 0; i < size; ++i) {
    dot += double{a[i]} * b[i];
    norm_a += double{a[i]} * a[i];
    norm_b += double{b[i]} * b[i];
  }
  return norm_a > 0 && norm_b > 0 ? dot / std::sqrt(norm_a * norm_b) : 0;
}

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL.xsr SENTENCE...\n", argv[0]);
    return 2;
  }
  try {
    const xsr::Model model(argv[1]);
    xsr::Session session(model);
    const std::vector<std::string_view> texts(argv + 2, argv + argc);
    const std::vector<float> embeddings = session.embed(texts);
    for (size_t i = 0; i < texts.size(); ++i) {
      const float* row = embeddings.data() + i * session.embedding_size();
      std::printf("%7.4f  %s\n", cosine(embeddings.data(), row, session.embedding_size()),
                  argv[2 + i]);
    }
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
      throw std::runtime_error("cannot write to standard output");
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "embed: %s\n", e.what());
    return 1;
  }
}
