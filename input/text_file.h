#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "runtime/text/byte_source.h"

namespace xsr {

/// The bytes of `source`, unpacked where its first bytes say that it is gzip (one or several
/// members) or Zstandard (frames, also such as are to be skipped; window up to 2^27 bytes); all
/// others as they are. Nothing is read before the first read(). total_bytes() and bytes_read() are
/// those of the source.
///
/// stop, when given, is the source's too. read() throws the source's Error, and Error(BAD_FILE)
/// that names the byte and the mend where packed data is damaged, ends early or has something else
/// behind it, and where a file whose name ends with .gz or .zst holds nothing. Text before the
/// place where it ends early is given first.
std::unique_ptr<ByteSource> unpack(std::unique_ptr<ByteSource> source,
                                   const std::atomic<bool>* stop = nullptr);

/// unpack() of a FileSource. Throws Error(IO).
std::unique_ptr<ByteSource> open_text_file(const std::string& path,
                                           const std::atomic<bool>* stop = nullptr);

/// All lines of a file that may be packed, as a LineReader gives them. Throws Error(IO), and as it
/// does.
std::vector<std::string> read_all_lines(const std::string& path);

}  // namespace xsr
