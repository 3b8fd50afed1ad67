#include "input/pair_file.h"

#include <filesystem>

#include "input/text_file.h"
#include "runtime/error.h"

namespace xsr {
namespace {

/// "en-fr" of data/en-fr.tsv.gz.
std::string stem_of(const std::string& file) {
  std::filesystem::path name = std::filesystem::path(file).filename();
  if (name.extension() == ".gz" || name.extension() == ".zst") name = name.stem();
  return name.stem();
}

}  // namespace

NamedFile parse_named_file(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || text.find('/') < equals) return {"", text};
  return {text.substr(0, equals), text.substr(equals + 1)};
}

PairFile parse_pair_file(const std::string& text) {
  auto [name, files] = parse_named_file(text);
  PairFile file;
  file.name = std::move(name);
  const size_t comma = files.find(',');
  file.first = files.substr(0, comma);
  if (comma != std::string::npos) file.second = files.substr(comma + 1);
  if (file.first.empty() || (comma != std::string::npos && file.second.empty())) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "\"" + text + "\" names no file; expected [NAME=]FILE.tsv or [NAME=]FILE,FILE");
  }
  if (file.name.empty()) {
    const std::string a = stem_of(file.first), b = stem_of(file.second);
    file.name = b.empty() || a == b ? a : a + "-" + b;
  }
  return file;
}

PairLines read_pairs(const PairFile& file) {
  PairLines sides;
  sides.first = read_all_lines(file.first);
  if (!file.second.empty()) {
    sides.second = read_all_lines(file.second);
    if (sides.first.size() != sides.second.size()) {
      throw Error(XSR_STATUS_BAD_FILE, file.first + " has " + std::to_string(sides.first.size()) +
                                           " lines, " + file.second + " has " +
                                           std::to_string(sides.second.size()) +
                                           "; expected the same sentence in the same line of both");
    }
  } else {
    for (size_t i = 0; i < sides.first.size(); ++i) {
      std::string& line = sides.first[i];
      const size_t tab = line.find('\t');
      if (tab == std::string::npos) {
        throw Error(XSR_STATUS_BAD_FILE,
                    file.first + ":" + std::to_string(i + 1) +
                        ": has 1 column, expected 2, split by TAB. Two files of one sentence a "
                        "line are given as FILE,FILE");
      }
      const size_t end = line.find('\t', tab + 1);
      sides.second.push_back(line.substr(tab + 1, end == std::string::npos ? end : end - tab - 1));
      line.resize(tab);
    }
  }
  if (sides.first.empty()) throw Error(XSR_STATUS_BAD_FILE, file.first + ": has no lines");
  return sides;
}

}  // namespace xsr
