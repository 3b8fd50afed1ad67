#pragma once
#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace xsr::training {

/// CRC-32C (Castagnoli), as TFRecord files have it, and masked.
uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

/// An event file as TensorBoard reads it: TFRecord framing around the few fields of the protocol
/// buffers Event and Summary that scalars need.
class EventFile {
 public:
  /// Writes a new file with its version record. Throws Error(IO).
  EventFile(const std::string& path, double wall_time);

  /// One event with a scalar for each tag. wall_time: seconds since 1970.
  void write(double wall_time, int64_t step,
             const std::vector<std::pair<std::string, double>>& scalars);

 private:
  void record(const std::string& event);

  std::string path_;
  std::ofstream out_;
};

}  // namespace xsr::training
