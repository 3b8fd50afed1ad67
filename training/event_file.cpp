#include "training/event_file.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "runtime/error.h"

namespace xsr::training {
namespace {

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
    table[i] = crc;
  }
  return table;
}();

// Little-endian, as TFRecord and protocol buffers have it and as every machine xsr runs on stores.
template <typename T>
std::string raw(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

// Wire types of protocol buffers.
std::string varint_field(int number, uint64_t value) {
  return varint(static_cast<uint64_t>(number) << 3) + varint(value);
}
std::string double_field(int number, double value) {
  return varint(static_cast<uint64_t>(number) << 3 | 1) + raw(value);
}
std::string bytes_field(int number, std::string_view value) {
  return varint(static_cast<uint64_t>(number) << 3 | 2) + varint(value.size()) + std::string(value);
}
std::string float_field(int number, float value) {
  return varint(static_cast<uint64_t>(number) << 3 | 5) + raw(value);
}

// Fields of event.proto and summary.proto.
constexpr int kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5;
constexpr int kSummaryValue = 1, kValueTag = 1, kValueSimple = 2;

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char c : bytes) crc = crc >> 8 ^ kCrcTable[(crc ^ static_cast<uint8_t>(c)) & 0xff];
  return ~crc;
}

uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

EventFile::EventFile(const std::string& path, double wall_time)
    : path_(path), out_(path, std::ios::binary | std::ios::trunc) {
  record(double_field(kEventWallTime, wall_time) + bytes_field(kEventFileVersion, "brain.Event:2"));
}

void EventFile::write(double wall_time, int64_t step,
                      const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    summary += bytes_field(kSummaryValue, bytes_field(kValueTag, tag) +
                                              float_field(kValueSimple, static_cast<float>(value)));
  }
  record(double_field(kEventWallTime, wall_time) +
         varint_field(kEventStep, static_cast<uint64_t>(step)) +
         bytes_field(kEventSummary, summary));
}

void EventFile::record(const std::string& event) {
  const std::string length = raw(static_cast<uint64_t>(event.size()));
  out_ << length << raw(masked_crc32c(length)) << event << raw(masked_crc32c(event));
  if (!out_.flush()) {
    throw Error(XSR_STATUS_IO,
                path_ + ": cannot write the event file: " + std::generic_category().message(errno));
  }
}

}  // namespace xsr::training
