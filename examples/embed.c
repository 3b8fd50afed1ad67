/* Embeds an English and a French sentence and prints their cosine. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xsr/xsr.h>

static int fail(const char* message) {
  fprintf(stderr, "embed: %s\n", message);
  return 1;
}

int main(int argc, char** argv) {
  const char *english = "The children play in the garden.",
             *french = "Les enfants jouent au jardin.";
  const xsr_text texts[2] = {{english, strlen(english)}, {french, strlen(french)}};
  xsr_model* model;
  xsr_session* session;
  char detail[512];

  if (argc != 2) return fail("usage: embed MODEL.xsr");
  if (xsr_model_open(argv[1], NULL, &model, detail, sizeof detail)) return fail(detail);
  if (xsr_session_create(model, NULL, &session, detail, sizeof detail)) return fail(detail);

  xsr_model_info info = {.size = sizeof info};
  if (xsr_model_get_info(model, &info)) return fail("no model info");
  const int size = info.embedding_size;
  float* embeddings = malloc(2 * sizeof(float) * (size_t)size);
  if (embeddings == NULL) return fail("out of memory");
  if (xsr_session_embed_texts(session, texts, 2, embeddings, NULL))
    return fail(xsr_session_get_error(session));

  double dot = 0, norms[2] = {0, 0};
  for (int i = 0; i < size; ++i) {
    dot += (double)embeddings[i] * embeddings[size + i];
    for (int row = 0; row < 2; ++row) norms[row] += pow(embeddings[row * size + i], 2);
  }
  printf("%s\n%s\ncosine %.4f\n", english, french, dot / sqrt(norms[0] * norms[1]));
  if (fflush(stdout) != 0) return fail("cannot write to standard output");

  free(embeddings);
  xsr_session_destroy(session);
  xsr_model_close(model);
  return 0;
}
