/* Included before every source of the engine and of ggml: what they print becomes log lines, for standard output is the
   caller's. C and C++. */
#ifndef SDCPP_OUTPUT_STDOUT_H
#define SDCPP_OUTPUT_STDOUT_H

/* Before the macros, which would rename what it declares, and which C++'s header takes away. */
#ifdef __cplusplus
#include <cstdio>
#else
#include <stdio.h>
#endif

#if defined(_WIN32)
#ifdef SDCPP_OUTPUT_BUILD
#define SDCPP_OUTPUT_API __declspec(dllexport)
#else
#define SDCPP_OUTPUT_API __declspec(dllimport)
#endif
#else
#define SDCPP_OUTPUT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Logs a formatted text, a line each; what has no line break yet waits for it, on each thread by itself. */
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
SDCPP_OUTPUT_API int sdcpp_print(const char* format, ...);

#ifdef __cplusplus
}
#endif

#define printf(...) sdcpp_print(__VA_ARGS__)
#define puts(text) sdcpp_print("%s\n", text)
#define putchar(letter) sdcpp_print("%c", letter)

#endif /* SDCPP_OUTPUT_STDOUT_H */
