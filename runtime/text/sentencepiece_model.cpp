#include "runtime/text/sentencepiece_model.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "runtime/error.h"

namespace xsr {
[[noreturn]] void bad_sentencepiece_model(const std::string& what) {
  throw_bad_file("SentencePiece model: " + what);
}

namespace {

// The library's tables for user-defined symbols that are prefixes of each other have 64 places.
constexpr size_t kMaxNestedSymbols = 64;
// The library counts bytes in int.
constexpr size_t kMaxBlobBytes = size_t{1} << 30;

/// Reads the fields of one protocol-buffers message, wire format as in the protobuf encoding
/// document.
class Message {
 public:
  Message(std::string_view bytes, size_t offset) : bytes_(bytes), offset_(offset) {}

  /// Moves to the next field; false at the end. Inlined: a vocabulary has some hundred thousand.
  __attribute__((always_inline)) bool next() {
    field_begin_ = at_;
    if (at_ == bytes_.size()) return false;
    const uint64_t tag = varint();
    number_ = tag >> 3;
    wire_ = static_cast<int>(tag & 7);
    if (number_ == 0 || number_ > 0x1FFFFFFF) fail_here("field number " + std::to_string(number_));
    size_t size = 0;
    switch (wire_) {
      case 0:
        value_ = varint();
        return true;
      case 1:
        size = 8;
        break;
      case 2: {
        const uint64_t length = varint();
        if (length > bytes_.size() - at_) {
          fail_here("a field of " + std::to_string(length) + " bytes where " +
                    std::to_string(bytes_.size() - at_) + " are left");
        }
        size = static_cast<size_t>(length);
        break;
      }
      case 5:
        size = 4;
        break;
      default:
        fail_here("wire type " + std::to_string(wire_) + ", expected 0, 1, 2 or 5");
    }
    if (size > bytes_.size() - at_) fail_here("the file ends inside a number");
    data_ = bytes_.substr(at_, size);
    at_ += size;
    return true;
  }

  uint64_t number() const { return number_; }
  uint64_t value() const {
    if (wire_ != 0) fail_type("a number");
    return value_;
  }
  bool flag() const { return value() != 0; }
  std::string_view data() const {
    if (wire_ != 2) fail_type("bytes");
    return data_;
  }
  Message message() const {
    return Message(data(), offset_ + static_cast<size_t>(data_.data() - bytes_.data()));
  }
  float real() const {
    if (wire_ != 5) fail_type("a float");
    float value;
    std::memcpy(&value, data_.data(), sizeof value);
    return value;
  }
  std::string_view raw() const { return bytes_.substr(field_begin_, at_ - field_begin_); }

 private:
  uint64_t varint() {
    if (at_ < bytes_.size() && !(bytes_[at_] & 0x80)) return static_cast<uint64_t>(bytes_[at_++]);
    return long_varint();
  }
  uint64_t long_varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at_ == bytes_.size()) fail_here("the message ends inside a number");
      const unsigned char byte = static_cast<unsigned char>(bytes_[at_++]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (!(byte & 0x80)) return value;
    }
    fail_here("a number of more than 10 bytes");
  }
  [[noreturn]] void fail_here(const std::string& what) const {
    bad_sentencepiece_model("offset " + std::to_string(offset_ + field_begin_) + ": " + what);
  }
  [[noreturn]] void fail_type(const std::string& expected) const {
    fail_here("field " + std::to_string(number_) + " has wire type " + std::to_string(wire_) +
              ", expected " + expected);
  }

  std::string_view bytes_;
  size_t offset_;  // of bytes_ in the file, for messages
  size_t at_ = 0, field_begin_ = 0;
  uint64_t number_ = 0, value_ = 0;
  int wire_ = 0;
  std::string_view data_;
};

void parse_trainer(Message&& m, SentencePieceModel& model) {
  while (m.next()) {
    switch (m.number()) {
      case 3:
        if (m.value() < 1 || m.value() > 4) {
          bad_sentencepiece_model("model_type is " + std::to_string(m.value()) +
                                  ", expected 1 (unigram), 2 (bpe), 3 (word) or 4 (char)");
        }
        model.type = static_cast<SentencePieceType>(m.value());
        break;
      case 24:
        model.treat_whitespace_as_suffix = m.flag();
        break;
      case 35:
        model.byte_fallback = m.flag();
        break;
      default:
        break;
    }
  }
}

void parse_normalizer(Message&& m, SentencePieceModel& model) {
  while (m.next()) {
    switch (m.number()) {
      case 2:
        model.charsmap = m.data();
        break;
      case 3:
        model.add_dummy_prefix = m.flag();
        break;
      case 4:
        model.remove_extra_whitespaces = m.flag();
        break;
      case 5:
        model.escape_whitespaces = m.flag();
        break;
      default:
        break;
    }
  }
}

void parse_piece(Message&& m, SentencePieceModel& model) {
  SentencePieceModel::Piece piece;
  std::string_view text;
  while (m.next()) {
    if (m.number() == 1) {
      text = m.data();
    } else if (m.number() == 2) {
      piece.score = m.real();
    } else if (m.number() == 3) {
      if (m.value() < 1 || m.value() > 6) {
        bad_sentencepiece_model("piece " + std::to_string(model.pieces.size()) + " has type " +
                                std::to_string(m.value()) + ", expected 1 to 6");
      }
      piece.type = static_cast<PieceType>(m.value());
    }
  }
  if (text.empty() || text.size() > kMaxPieceBytes) {
    bad_sentencepiece_model("piece " + std::to_string(model.pieces.size()) + " has " +
                            std::to_string(text.size()) + " bytes, expected 1 to " +
                            std::to_string(kMaxPieceBytes));
  }
  piece.begin = static_cast<uint32_t>(model.texts.size());
  piece.size = static_cast<uint16_t>(text.size());
  model.texts.append(text);
  model.pieces.push_back(piece);
}

void check_nul(const SentencePieceModel& model) {
  const size_t nul = model.texts.find('\0');
  if (nul == std::string::npos) return;
  size_t id = 0;
  while (model.pieces[id].begin + model.pieces[id].size <= nul) ++id;
  bad_sentencepiece_model("piece " + std::to_string(id) + " contains a NUL byte");
}

void check_nesting(const SentencePieceModel& model) {
  std::vector<std::string_view> symbols, open;
  for (const auto& p : model.pieces) {
    if (p.type == PieceType::kUserDefined) symbols.push_back(model.text(p));
  }
  std::sort(symbols.begin(), symbols.end());
  for (std::string_view s : symbols) {
    while (!open.empty() && s.substr(0, open.back().size()) != open.back()) open.pop_back();
    open.push_back(s);
    if (open.size() > kMaxNestedSymbols) {
      bad_sentencepiece_model(
          "more than " + std::to_string(kMaxNestedSymbols) +
          " user-defined symbols begin with each other: " + std::string(open.front()));
    }
  }
}

}  // namespace

SentencePieceModel parse_sentencepiece_model(std::string_view blob) {
  SentencePieceModel model;
  if (blob.size() > kMaxBlobBytes) {
    bad_sentencepiece_model(std::to_string(blob.size()) + " bytes, expected at most " +
                            std::to_string(kMaxBlobBytes));
  }
  // A piece takes some 20 bytes: text, score, type and their tags.
  model.pieces.reserve(blob.size() / 16);
  model.texts.reserve(blob.size() + kTextPadding);
  for (Message m(blob, 0); m.next();) {
    switch (m.number()) {
      case 1:
        parse_piece(m.message(), model);
        break;
      case 2:
        parse_trainer(m.message(), model);
        break;
      case 3:
        parse_normalizer(m.message(), model);
        break;
      default:  // self-test data, the rules for decoding
        break;
    }
  }
  if (model.pieces.empty())
    bad_sentencepiece_model("there are no pieces; is this a SentencePiece model?");
  check_nul(model);
  check_nesting(model);
  model.texts.append(kTextPadding, '\0');
  return model;
}

std::string without_normalizer(std::string_view blob) {
  std::string out;
  out.reserve(blob.size());
  for (Message m(blob, 0); m.next();) {
    if (m.number() == 1 || m.number() == 2) out.append(m.raw());
  }
  // normalizer_spec { add_dummy_prefix: false remove_extra_whitespaces: false escape_whitespaces:
  // false }
  out.append("\x1A\x06\x18\x00\x20\x00\x28\x00", 8);
  return out;
}

}  // namespace xsr
