#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace xsr::kernels {

/// Asks for the rows of a table that token_ids [first, last) name before they are read: they lie
/// anywhere in many megabytes, and each would be waited for. One row's work hides a part of one
/// access to DRAM, so several are on their way at a time.
///
/// Inlined by force, as everything must be that does nothing but ask: gcc takes a function without
/// other effects for a pure one and drops the calls of it.
class RowPrefetch {
 public:
  RowPrefetch(const void* table, int64_t row_bytes, const int32_t* token_ids, int32_t first,
              int32_t last)
      : table_((const char*)table), row_bytes_(row_bytes), token_ids_(token_ids), last_(last) {
    for (int32_t i = first; i < first + kAhead; ++i) ask(i);
  }
  /// Row i is read next.
  inline __attribute__((always_inline)) void reach(int32_t i) const { ask(i + kAhead); }

 private:
  static constexpr int32_t kAhead = 4;

  inline __attribute__((always_inline)) void ask(int32_t i) const {
    if (i >= last_) return;
    const char* row = table_ + token_ids_[i] * row_bytes_;
    for (int64_t byte = 0; byte < row_bytes_; byte += 64) _mm_prefetch(row + byte, _MM_HINT_T0);
  }

  const char* table_;
  int64_t row_bytes_;
  const int32_t* token_ids_;
  int32_t last_;
};

}  // namespace xsr::kernels
