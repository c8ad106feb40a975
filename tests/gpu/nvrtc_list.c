// Stands before the real NVRTC and writes down what it is given: a line for each program, with tabs between
//
//     architecture, 0 or NVRTC's error, registers, bytes of local memory, milliseconds, name of the kernel, types of its arguments
//
// in the file SOFTSHARD_NVRTC_LIST. What does not compile is kept, with NVRTC's words behind it, as SOFTSHARD_NVRTC_LIST.N.cu.
//
//     cc -shared -fPIC -O1 -o libnvrtc.so nvrtc_list.c -L$CUDA_PATH/lib -Wl,--no-as-needed -l:libnvrtc.so.13
//
// Functions that are not here are those of the real one.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef int Result;
typedef void *Program;
#define API __attribute__((visibility("default"))) Result

// The function of that name in the library that this one is linked with.
static void *real(const char *name) {
    void *function = dlsym(RTLD_NEXT, name);
    if (!function) {
        fprintf(stderr, "nvrtc_list: the real NVRTC has no %s\n", name);
        exit(2);
    }
    return function;
}
#define REAL(name, ...) ((Result (*)(__VA_ARGS__))real(name))

// Sources by their programs: CubeCL makes one after the other, and destroys none.
static __thread Program last;
static __thread char *source;

API nvrtcCreateProgram(Program *program, const char *text, const char *name, int count, const char *const *headers, const char *const *includes) {
    Result result = REAL("nvrtcCreateProgram", Program *, const char *, const char *, int, const char *const *, const char *const *)
        (program, text, name, count, headers, includes);
    free(source);
    source = strdup(text);
    last = *program;
    return result;
}

// The name and the types of the arguments of the kernel: `__global__ void [attributes] NAME(TYPE name, ...)`.
static void signature(char *name, char *types, size_t size) {
    *name = *types = 0;
    const char *at = source ? strstr(source, "__global__") : NULL;
    const char *body = at ? strchr(at, '{') : NULL;
    if (!body) return;
    // The last parenthesis that opens at the outermost level belongs to the arguments.
    const char *open = NULL;
    int depth = 0;
    for (const char *here = at; here < body; here++) {
        if (*here == '(' && depth++ == 0) open = here;
        if (*here == ')') depth--;
    }
    if (!open) return;
    const char *end = open, *start;
    while (end > at && (end[-1] == ' ' || end[-1] == '\n')) end--;
    for (start = end; start > at && strchr(" \n)*", start[-1]) == NULL; start--) {}
    snprintf(name, size, "%.*s", (int)(end - start), start);
    size_t used = 0;
    for (const char *here = open + 1; here < body && used + 2 < size; here++)
        types[used++] = *here == '\n' || *here == '\t' ? ' ' : *here;
    while (used && types[used - 1] != ')') used--;
    types[used ? used - 1 : 0] = 0;
}

static uint32_t word(const unsigned char *at) { uint32_t value; memcpy(&value, at, sizeof value); return value; }
static uint64_t wide(const unsigned char *at) { uint64_t value; memcpy(&value, at, sizeof value); return value; }

// Registers and bytes of local memory, as the sections `.nv.info` of a cubin (64-bit ELF) say it: entries of a format, an attribute,
// and a length or value; 0x2f is a function's registers, 0x11 the size of its frame.
static void resources(Program program, int *registers, int *local) {
    size_t size = 0;
    *registers = *local = -1;
    if (REAL("nvrtcGetCUBINSize", Program, size_t *)(program, &size) || size < 64) return;
    unsigned char *cubin = malloc(size);
    if (cubin && !REAL("nvrtcGetCUBIN", Program, char *)(program, (char *)cubin)) {
        uint64_t table = wide(cubin + 40);
        unsigned entry = word(cubin + 58) & 0xffff, count = word(cubin + 60) & 0xffff;
        for (unsigned section = 0; section < count && table + (section + 1) * (uint64_t)entry <= size; section++) {
            const unsigned char *header = cubin + table + section * (uint64_t)entry;
            uint64_t begin = wide(header + 24), length = wide(header + 32);
            if (word(header + 4) != 0x70000000 || begin > size || length > size - begin) continue;
            for (uint64_t at = begin; at + 4 <= begin + length;) {
                unsigned format = cubin[at], attribute = cubin[at + 1], bytes = word(cubin + at) >> 16;
                if (format == 4 && bytes == 8 && at + 12 <= begin + length) {
                    int value = (int)word(cubin + at + 8);
                    if (attribute == 0x2f && value > *registers) *registers = value;
                    if (attribute == 0x11 && value > *local) *local = value;
                }
                at += 4 + (format == 4 ? bytes : 0);
            }
        }
    }
    free(cubin);
}

static void keep(const char *list, Program program) {
    size_t size = 0;
    char path[4096];
    FILE *file = NULL;
    for (int number = 1; !file && number < 10000; number++) {
        snprintf(path, sizeof path, "%s.%d.cu", list, number);
        file = fopen(path, "wx");
    }
    if (!file) return;
    fputs(source, file);
    if (!REAL("nvrtcGetProgramLogSize", Program, size_t *)(program, &size) && size) {
        char *log = malloc(size);
        if (log && !REAL("nvrtcGetProgramLog", Program, char *)(program, log)) fprintf(file, "\n/* NVRTC:\n%s*/\n", log);
        free(log);
    }
    fclose(file);
}

API nvrtcCompileProgram(Program program, int count, const char *const *options) {
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    Result result = REAL("nvrtcCompileProgram", Program, int, const char *const *)(program, count, options);
    clock_gettime(CLOCK_MONOTONIC, &after);
    const char *list = getenv("SOFTSHARD_NVRTC_LIST"), *architecture = "";
    if (!list || program != last) return result;
    for (int option = 0; option < count; option++)
        if (!strncmp(options[option], "--gpu-architecture=", 19)) architecture = options[option] + 19;
    static __thread char name[1024], types[1024], line[4096];
    int registers, local;
    signature(name, types, sizeof name);
    resources(program, &registers, &local);
    long milliseconds = (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000;
    int length = snprintf(line, sizeof line, "%s\t%d\t%d\t%d\t%ld\t%s\t%s\n", architecture, result, registers, local, milliseconds, name, types);
    // One write, so that lines of several processes do not mix.
    int file = open(list, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (file < 0 || write(file, line, length) != length) perror(list);
    if (file >= 0) close(file);
    if (result) keep(list, program);
    return result;
}
