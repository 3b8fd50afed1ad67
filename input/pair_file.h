#pragma once
#include <string>
#include <vector>

namespace xsr {

/// "[NAME=]FILE". A NAME has no '/', so that "./lang=fr/pairs.tsv" is a file in a folder of that
/// name.
struct NamedFile {
  std::string name, path;  // name: empty where there is none
};
NamedFile parse_named_file(const std::string& text);

/// Sentence pairs to score a model on: "[NAME=]FILE.tsv" (columns 1 and 2) or "[NAME=]FILE,FILE",
/// two files in which line n is the same sentence. They may be packed, as read_all_lines() takes
/// them.
struct PairFile {
  std::string name;
  std::string first, second;  // second empty: one file of two columns
};
/// Without NAME: the stem of the files, "en-fr" for en.txt.gz,fr.txt.gz. Throws
/// Error(INVALID_ARGUMENT) where no file is named.
PairFile parse_pair_file(const std::string& text);

struct PairLines {
  std::vector<std::string> first, second;  // of the same size, at least 1
};
/// Throws Error(IO; BAD_FILE that names file and line) where a line has no second column, the files
/// have different numbers of lines, or there are none.
PairLines read_pairs(const PairFile& file);

}  // namespace xsr
