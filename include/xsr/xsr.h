/* xsr: light cross-lingual sentence encoders. The C API; C11, compiles alone.
 *
 * Open one .xsr file, create a session, turn sentences of any language into vectors:
 *
 *     xsr_model* model;
 *     xsr_session* session;
 *     char detail[512];
 *     if (xsr_model_open("model.xsr", NULL, &model, detail, sizeof detail)) ...
 *     if (xsr_session_create(model, NULL, &session, detail, sizeof detail)) ...
 *     xsr_session_embed_texts(session, texts, count, embeddings, results);
 *
 * Promises. The same text, model, ISA and compute type give the same bits whatever stands beside
 * the text in the call, in whatever order, with any number of threads, and whatever rounding,
 * denormals or traps the calling thread is set to (it is set so again afterwards). No function
 * prints, aborts, exits or lets an exception out.
 *
 * Errors. Every function that can fail returns an xsr_status; 0 is success. Results come through
 * out-parameters, which are written only on success. Functions that open or create take a buffer
 * for a message that says what was found, what was expected and where; the buffer may be NULL. A
 * session keeps the message of its last call, if that failed.
 *
 * Threads. An xsr_model is immutable and may be used by any number of threads and sessions at once.
 * An xsr_session serves one call at a time. After fork() the child may use and destroy what the
 * parent had and was not using; a session that the parent made then computes on the calling thread
 * alone. CUDA devices, once used, are the parent's alone.
 */
#ifndef XSR_XSR_H
#define XSR_XSR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define XSR_API __attribute__((visibility("default")))
#else
#define XSR_API
#endif

/* In C++ an enum without a type may hold its listed values only; a caller's mistake must stay a
 * status. */
#ifdef __cplusplus
#define XSR_ENUM_TYPE : int
#else
#define XSR_ENUM_TYPE
#endif

#define XSR_VERSION_MAJOR 0
#define XSR_VERSION_MINOR 1
#define XSR_VERSION_PATCH 0

/* The values are fixed: a status keeps its number for ever. */
typedef enum xsr_status XSR_ENUM_TYPE {
  XSR_STATUS_OK = 0,
  XSR_STATUS_INVALID_ARGUMENT =
      1,                   /* the caller's mistake: a null pointer, a token id out of range, ... */
  XSR_STATUS_IO = 2,       /* the operating system refused: file not found, not readable, ... */
  XSR_STATUS_BAD_FILE = 3, /* the file is damaged, truncated, or no .xsr file */
  XSR_STATUS_UNSUPPORTED =
      4, /* a file version, model family, ISA, dtype or device this build cannot serve */
  XSR_STATUS_OUT_OF_MEMORY = 5,
  XSR_STATUS_CUDA = 6,
  XSR_STATUS_INTERNAL = 7 /* a bug in xsr */
} xsr_status;

typedef enum xsr_isa XSR_ENUM_TYPE {
  XSR_ISA_AUTO =
      0,           /* the fastest this CPU runs, capped by the environment variable XSR_FORCE_ISA */
  XSR_ISA_REF = 1, /* plain loops */
  XSR_ISA_AVX2 = 2,        /* AVX2 and FMA */
  XSR_ISA_AVX2_VNNI = 3,   /* and AVX-VNNI; matters where the session computes in int8 */
  XSR_ISA_AVX512 = 4,      /* AVX-512 F, BW, DQ, VL; int8 by AVX-VNNI where there is */
  XSR_ISA_AVX512_VNNI = 5, /* and AVX512_VNNI; matters where the session computes in int8 */
  XSR_ISA_AVX512_BF16 = 6, /* and AVX512_BF16; matters where the session computes in bf16 */
  XSR_ISA_AMX = 7          /* and AMX tiles (TILE, BF16, INT8); matters for bf16, bf16x3 and int8 */
} xsr_isa;

/* What the matrix products compute with; everything else is f32, but for the attention of
 * BF16 and INT8, which multiplies in bf16 where the ISA has AVX512_BF16. Chosen by the caller,
 * never silently. */
typedef enum xsr_compute XSR_ENUM_TYPE {
  XSR_COMPUTE_F32 = 0, /* f32, whatever the file stores. A session of an i8 file widens its weight
                          matrices, 4 bytes a weight, shared by the model's sessions */
  XSR_COMPUTE_BF16 =
      1, /* activations rounded to bf16, f32 sums; the file must store bf16 weights */
  XSR_COMPUTE_BF16X3 =
      2, /* every f32 as the sum of two bf16, three products, f32 sums. Keeps a split copy of the
            layers' matrices, 4 bytes a weight, shared by the model's sessions; any file */
  XSR_COMPUTE_INT8 = 3, /* each row of activations in 8 bits by its own range, weights in 8 bits
                           with a scale an output, exact sums. A session of a file that stores other
                           than i8 rounds the weight matrices, 1 byte a weight, shared likewise; on
                           AVX2 any file's are kept anew, about 1.6 bytes a weight, 3 at worst */
  XSR_COMPUTE_TF32 = 4  /* CUDA devices only: as F32, but products may round their operands to TF32,
                           10 bits of mantissa */
} xsr_compute;

/* CUDA: the forward pass on one or several NVIDIA devices; text becomes tokens on the CPU. Needs
 * libxsr_cuda.so, which is looked for beside libxsr, then where the loader looks (the environment
 * variable XSR_CUDA_LIBRARY names another file), and a driver. The weights are copied to every
 * device of every session. Computes in F32, TF32 or BF16; in BF16 Q, K, V and the attention's
 * probabilities are bf16 too. Takes models of hidden_size up to 1024 and heads of up to 128. The
 * bits are not the CPU's; they depend on the kind of device, never on the number of devices. */
typedef enum xsr_device XSR_ENUM_TYPE { XSR_DEVICE_CPU = 0, XSR_DEVICE_CUDA = 1 } xsr_device;

typedef enum xsr_normalize XSR_ENUM_TYPE {
  XSR_NORMALIZE_MODEL = 0, /* as the model file says */
  XSR_NORMALIZE_OFF = 1,
  XSR_NORMALIZE_ON = 2 /* L2-normalised; the zero vector of an empty text stays zero */
} xsr_normalize;

/* The first layer's Q, K and V of every token of the vocabulary, computed once (vocab_size · 3 ·
 * hidden_size f32 in memory, shared by a model's sessions of one ISA) and looked up instead of
 * multiplied. Equal to the product up to f32 rounding, so the bits differ from those without it.
 * UNSUPPORTED of a model without layers. */
typedef enum xsr_qkv_table XSR_ENUM_TYPE {
  XSR_QKV_TABLE_AUTO = 0, /* off, so that a session opens at once; may become cleverer */
  XSR_QKV_TABLE_ON = 1,   /* built when the session is created */
  XSR_QKV_TABLE_OFF = 2
} xsr_qkv_table;

typedef struct xsr_model xsr_model;
typedef struct xsr_session xsr_session;

/* Option structs begin with their size, which the caller sets to sizeof; a member beyond the
 * caller's size takes its default, and so does every member that is 0. A member of a later version
 * that is not 0 is XSR_STATUS_UNSUPPORTED, never left unread. */
typedef struct xsr_model_options {
  size_t size;
  int32_t
      verify_checksums; /* 1: also check the XXH3 checksum of every tensor (reads the whole file) */
} xsr_model_options;

typedef struct xsr_session_options {
  size_t size;
  xsr_device device;
  xsr_isa isa;         /* XSR_FORCE_ISA caps every choice; one that this CPU cannot run is
                          XSR_STATUS_UNSUPPORTED */
  int32_t num_threads; /* 1 to 1024; 0: the processors this process may use (affinity and cgroup
                          quota) */
  xsr_normalize normalize;
  int32_t max_batch_tokens; /* tokens per chunk of work, 1 to 1,048,576; 0: tuned for the ISA or the
                               device. Changes speed and memory, never bits. */
  xsr_compute compute;
  xsr_qkv_table qkv_table;
  uint64_t cuda_devices; /* XSR_DEVICE_CUDA: bit i stands for device i; those set share every call.
                            0: device 0 */
} xsr_session_options;

typedef struct xsr_model_info {
  size_t size;        /* set by the caller to sizeof(xsr_model_info) */
  const char* family; /* "xsr"; lives as long as the model */
  int32_t num_layers;
  int32_t hidden_size;
  int32_t num_heads;
  int32_t intermediate_size;
  int32_t vocab_size;
  int32_t max_seq_len;    /* tokens; a longer text is truncated to it */
  int32_t embedding_size; /* floats per sentence embedding */
  int32_t has_tokenizer;  /* 0: the model takes token ids only */
  int32_t lowercase;      /* 1: text is lower-cased before it is tokenised */
  int32_t normalize;      /* 1: the model's embeddings are L2-normalised */
  const char* provenance; /* JSON: licence, and what the weights were made from (docs/FORMAT.md);
                             lives as long as the model */
  uint64_t file_size;     /* bytes */
} xsr_model_info;

/* UTF-8, not necessarily NUL-terminated; may contain NUL bytes. data may be NULL when size is 0. */
typedef struct xsr_text {
  const char* data;
  size_t size; /* bytes */
} xsr_text;

typedef struct xsr_text_result {
  int32_t num_tokens; /* tokens that were embedded, after truncation */
  uint8_t truncated;  /* 1: the text had more than max_seq_len tokens; the rest was left out */
  uint8_t empty;      /* 1: no tokens, the embedding is the zero vector */
  uint16_t reserved;  /* 0 */
  uint32_t
      replaced_bytes; /* malformed UTF-8 sequences replaced by U+FFFD, counted in replaced bytes */
} xsr_text_result;

/* ---- Library
 * --------------------------------------------------------------------------------------------- */

/* "0.1.0"; static. */
XSR_API const char* xsr_version_string(void);
/* A short English name of the status, e.g. "bad file"; never NULL; static. */
XSR_API const char* xsr_status_string(xsr_status status);
/* "auto", "ref", "avx2", ...; "unknown" for another value; static. */
XSR_API const char* xsr_isa_string(xsr_isa isa);

/* ---- Models
 * ---------------------------------------------------------------------------------------------- */

/* Maps the file read-only, validates its header, tables and every offset, and loads the tokenizer.
 * The tensors are not copied and not read. options may be NULL. detail (detail_size bytes, may be
 * NULL) receives a message on failure. Errors: IO, BAD_FILE, UNSUPPORTED, OUT_OF_MEMORY,
 * INVALID_ARGUMENT. */
XSR_API xsr_status xsr_model_open(const char* path, const xsr_model_options* options,
                                  xsr_model** model, char* detail, size_t detail_size);
/* The same from memory, which must be 64-byte aligned and outlive the model and its sessions; it is
 * not copied. */
XSR_API xsr_status xsr_model_open_memory(const void* data, size_t size,
                                         const xsr_model_options* options, xsr_model** model,
                                         char* detail, size_t detail_size);
/* NULL is allowed. Sessions of the model go on: what they use is released with the last of them. */
XSR_API void xsr_model_close(xsr_model* model);
/* Fills info up to info->size bytes and sets info->size to how many it has filled. Errors:
 * INVALID_ARGUMENT. */
XSR_API xsr_status xsr_model_get_info(const xsr_model* model, xsr_model_info* info);
/* Checks the XXH3 checksum of every tensor and makes the tokenizer's tables again; reads the whole
 * file. Errors: BAD_FILE naming the tensor or the table, OUT_OF_MEMORY, INVALID_ARGUMENT. */
XSR_API xsr_status xsr_model_verify(const xsr_model* model, char* detail, size_t detail_size);

/* ---- Sessions
 * -------------------------------------------------------------------------------------------- */

/* options may be NULL: CPU, fastest ISA, all processors. Errors: INVALID_ARGUMENT (an unknown
 * XSR_FORCE_ISA too), UNSUPPORTED, OUT_OF_MEMORY, CUDA (its library, a driver or a device is
 * missing: the message says which, and the mend). */
XSR_API xsr_status xsr_session_create(const xsr_model* model, const xsr_session_options* options,
                                      xsr_session** session, char* detail, size_t detail_size);
/* NULL is allowed. */
XSR_API void xsr_session_destroy(xsr_session* session);
/* The ISA this session runs; XSR_ISA_AUTO for NULL and on a CUDA device. */
XSR_API xsr_isa xsr_session_get_isa(const xsr_session* session);
/* Threads this session works with, the caller's included; on a CUDA device they make tokens. */
XSR_API int32_t xsr_session_get_num_threads(const xsr_session* session);
/* "cpu", or the name of the CUDA device ("NVIDIA H100 80GB HBM3"), of several with ", " between
 * them; "" for NULL. Lives as long as the session. */
XSR_API const char* xsr_session_get_device_name(const xsr_session* session);
/* The message of the session's last call, "" if that did not fail; lives until the next call. */
XSR_API const char* xsr_session_get_error(const xsr_session* session);

/* Embeds count texts of any length, in any order.
 *   embeddings [count, embedding_size] f32, row i is texts[i]; written only on success, but for
 *              BAD_FILE, OUT_OF_MEMORY and CUDA, which may leave some rows written
 *   results    [count], may be NULL; written as embeddings are
 * An empty text gives a zero row and its flag. Errors: INVALID_ARGUMENT, UNSUPPORTED (model without
 * tokenizer), BAD_FILE (a control piece of its tokenizer is a word of a text), OUT_OF_MEMORY,
 * CUDA. */
XSR_API xsr_status xsr_session_embed_texts(xsr_session* session, const xsr_text* texts,
                                           size_t count, float* embeddings,
                                           xsr_text_result* results);

/* Embeds count token sequences, as a tokenizer of this model gives them (special tokens included).
 *   token_ids  [offsets[count]] ids in [0, vocab_size)
 *   offsets    [count + 1], never falling; sequence i is token_ids[offsets[i] .. offsets[i + 1])
 *   embeddings [count, embedding_size] f32, as for texts
 *   results    [count], as for texts
 * Sequences longer than max_seq_len are truncated and flagged. Errors: INVALID_ARGUMENT,
 * OUT_OF_MEMORY, CUDA. */
XSR_API xsr_status xsr_session_embed_ids(xsr_session* session, const int32_t* token_ids,
                                         const size_t* offsets, size_t count, float* embeddings,
                                         xsr_text_result* results);

/* Tokenises one text as xsr_session_embed_texts does, truncation included.
 *   token_ids  [capacity], may be NULL when capacity is 0
 *   num_tokens receives how many ids the text has; only the first min(capacity, num_tokens) are
 *              written
 *   result     may be NULL
 * Errors: as of xsr_session_embed_texts, but for CUDA. */
XSR_API xsr_status xsr_session_tokenize(xsr_session* session, xsr_text text, int32_t* token_ids,
                                        size_t capacity, size_t* num_tokens,
                                        xsr_text_result* result);

#ifdef __cplusplus
}
#endif

#endif /* XSR_XSR_H */
