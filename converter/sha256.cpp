#include "converter/sha256.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include "runtime/error.h"

namespace xsr {

std::string sha256_hex(std::span<const unsigned char> bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest, &size, EVP_sha256(), nullptr) != 1) {
    throw Error(XSR_STATUS_INTERNAL, "libcrypto does not give SHA-256");
  }
  return fmt::format("{:02x}", fmt::join(digest, digest + size, ""));
}

}  // namespace xsr
