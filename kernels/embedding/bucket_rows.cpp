#include "kernels/embedding/embedding.h"

namespace xsr::kernels {

RowBuckets bucket_rows(const int32_t* ids, int32_t N, int32_t V, int32_t skipped_id,
                       int32_t* memory) {
  const int32_t most = N < V ? N : V;
  int32_t* distinct = memory;
  int32_t* starts = distinct + most;
  int32_t* rows = starts + most + 1;
  int32_t* next = rows + N;  // an id's count, then where its next row goes
  for (int32_t v = 0; v < V; ++v) next[v] = 0;
  for (int32_t i = 0; i < N; ++i) next[ids[i]] += ids[i] != skipped_id;
  int32_t count = 0, start = 0;
  for (int32_t v = 0; v < V; ++v) {
    const int32_t length = next[v];
    if (length == 0) continue;
    distinct[count] = v;
    starts[count++] = next[v] = start;
    start += length;
  }
  starts[count] = start;
  for (int32_t i = 0; i < N; ++i) {
    if (ids[i] != skipped_id) rows[next[ids[i]]++] = i;
  }
  return {count, distinct, starts, rows};
}

}  // namespace xsr::kernels
