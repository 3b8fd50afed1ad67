#pragma once
// Which sanitizer this test is built with: they make the same work many times as slow, and what
// they look for shows in a part of it.

namespace xsr::test {

#if defined(__has_feature)  // clang
#if __has_feature(address_sanitizer)
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif
#if __has_feature(thread_sanitizer)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif
#else  // gcc
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif
#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif
#endif

/// Either, which make the arithmetic 10 to 30 times slower.
constexpr bool kSlow = kAddressSanitizer || kThreadSanitizer;

}  // namespace xsr::test
