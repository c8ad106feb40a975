// A CUDA driver without a GPU, so that the kernels of a real run reach NVRTC and are compiled: device memory are addresses, and a
// launch does nothing. See docs/gpu.md, "Without a GPU".
//
//     cc -shared -fPIC -O1 -o libcuda.so.1 fake_driver.c
//
// SOFTSHARD_FAKE_SM=80 (90, 100, 120) is the compute capability that it has. What is read of it is zero, but for what softshard
// would stop at: its own test of a device, the first read, gets the float 2, and with SOFTSHARD_FAKE_HEAD="W K D" whatever is made
// of rows of W words is K tokens of equal probability and D that were drawn (crates/losses/src/cube/layout.rs).
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef int Result;
typedef uint64_t Address;
#define API __attribute__((visibility("default"))) Result
enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };

static atomic_ulong modules, launches, allocated;
static const uint64_t TOTAL = 141ull << 30;

// Generations of GPUs, with what the runtime asks of them.
static const struct generation { int sm, processors, shared_block, shared_processor, threads; const char *name; } GENERATIONS[] = {
    {80, 108, 166912, 167936, 2048, "A100"},
    {90, 132, 232448, 233472, 2048, "H200"},
    {100, 148, 232448, 233472, 2048, "B200"},
    {120, 170, 101376, 102400, 1536, "RTX 5090"},
};
static const struct generation *generation(void) {
    const char *text = getenv("SOFTSHARD_FAKE_SM");
    int sm = text ? atoi(text) : 90;
    for (size_t at = 0; at < sizeof GENERATIONS / sizeof *GENERATIONS; at++)
        if (GENERATIONS[at].sm == sm) return &GENERATIONS[at];
    fprintf(stderr, "fake driver: SOFTSHARD_FAKE_SM: expected 80, 90, 100 or 120, found %s\n", text);
    exit(2);
}

__attribute__((destructor)) static void report(void) {
    if (modules)
        fprintf(stderr, "fake driver: %lu kernels compiled and loaded, %lu launches\n", modules, launches);
}

// What the runtime asks of a device, numbered as in cuda.h.
static int attribute(int number) {
    switch (number) {
    case 1: return 1024;                          // threads per block
    case 2: case 3: return 1024;                  // block x, y
    case 4: return 64;                            // block z
    case 5: return 2147483647;                    // grid x
    case 6: case 7: return 65535;                 // grid y, z
    case 8: return 49152;                         // shared memory per block
    case 10: return 32;                           // warp
    case 16: return generation()->processors;     // multiprocessors
    case 39: return generation()->threads;        // threads per multiprocessor
    case 75: return generation()->sm / 10;        // compute capability
    case 76: return generation()->sm % 10;
    case 97: return generation()->shared_block;   // shared memory per block, if asked for
    case 81: return generation()->shared_processor; // shared memory per multiprocessor
    case 82: return 65536;                        // registers per multiprocessor
    case 115: return 1;                           // memory pools
    default: return 0;
    }
}

API cuInit(unsigned flags) { (void)flags; return SUCCESS; }
API cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
API cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
API cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }
API cuDeviceGetAttribute(int *value, int number, int device) { (void)device; *value = attribute(number); return SUCCESS; }
API cuDeviceGetName(char *name, int size, int device) { (void)device; snprintf(name, size, "NVIDIA %s (no GPU: a fake driver)", generation()->name); return SUCCESS; }
API cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = TOTAL; return SUCCESS; }
API cuDeviceGetPCIBusId(char *id, int size, int device) { (void)device; snprintf(id, size, "0000:01:00.0"); return SUCCESS; }
API cuDeviceGetUuid_v2(void *id, int device) { (void)device; memset(id, 1, 16); return SUCCESS; }
API cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; static int one; *context = &one; return SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return SUCCESS; }
API cuCtxSetCurrent(void *context) { (void)context; return SUCCESS; }
API cuCtxGetCurrent(void **context) { return cuDevicePrimaryCtxRetain(context, 0); }
API cuCtxSynchronize(void) { return SUCCESS; }
API cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return SUCCESS; }
API cuMemGetInfo_v2(size_t *free, size_t *total) { *total = TOTAL; *free = TOTAL - allocated; return SUCCESS; }

// NVRTC asks for tables of private functions, and looks at their size before it takes one: these have none.
API cuGetExportTable(const void **table, const void *id) {
    static const size_t empty[8] = {sizeof empty[0]};
    (void)id;
    *table = empty;
    return SUCCESS;
}

// Errors.
API cuGetErrorName(Result error, const char **text) { (void)error; *text = "FAKE"; return SUCCESS; }
API cuGetErrorString(Result error, const char **text) { (void)error; *text = "an error of the fake driver"; return SUCCESS; }

// Memory: pages that nobody touches take none. The size stands before the first byte.
static Result take(Address *address, size_t bytes) {
    size_t all = bytes + 4096;
    char *pages = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED || allocated + bytes > TOTAL) return OUT_OF_MEMORY;
    memcpy(pages, &all, sizeof all);
    allocated += all;
    *address = (Address)(uintptr_t)(pages + 4096);
    return SUCCESS;
}
static Result give(Address address) {
    if (!address) return SUCCESS;
    char *pages = (char *)(uintptr_t)address - 4096;
    size_t all;
    memcpy(&all, pages, sizeof all);
    allocated -= all;
    munmap(pages, all);
    return SUCCESS;
}
API cuMemAlloc_v2(Address *address, size_t bytes) { return take(address, bytes); }
API cuMemAllocAsync(Address *address, size_t bytes, void *stream) { (void)stream; return take(address, bytes); }
API cuMemFree_v2(Address address) { return give(address); }
API cuMemFreeAsync(Address address, void *stream) { (void)stream; return give(address); }
API cuMemAllocHost_v2(void **address, size_t bytes) { return (*address = malloc(bytes)) ? SUCCESS : OUT_OF_MEMORY; }
API cuMemHostAlloc(void **address, size_t bytes, unsigned flags) { (void)flags; return cuMemAllocHost_v2(address, bytes); }
API cuMemFreeHost(void *address) { free(address); return SUCCESS; }

// Nothing reads what is on the device, so nothing is brought there.
API cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) { (void)to; (void)from; (void)bytes; (void)stream; return SUCCESS; }
API cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) { return cuMemcpyHtoDAsync_v2(to, from, bytes, NULL); }
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) { (void)to; (void)from; (void)bytes; (void)stream; return SUCCESS; }
API cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *stream) { (void)to; (void)value; (void)bytes; (void)stream; return SUCCESS; }

// A row as the kernel of the head writes it, of so many words: tokens that are kept, of the same logit 1, and one like them that is not;
// tokens that are drawn once each.
static void head_row(int32_t *row, int words, int kept, int drawn) {
    const float one = 1, sum = kept + 1;
    memset(row, 0, words * sizeof *row);
    row[0] = 1;
    row[7] = kept;
    row[8] = drawn;
    const int ones[] = {1, 4, 5, 6};
    for (int at = 0; at < 4; at++) memcpy(row + ones[at], &one, sizeof one);
    memcpy(row + 2, &sum, sizeof sum);
    int32_t *list = row + words - 2 * kept - 2 * drawn;
    for (int32_t *at = row + 9; at < list; at++) memcpy(at, &one, sizeof one); // sums at each temperature
    for (int at = 0; at < kept; at++) {
        list[at] = at;
        memcpy(list + kept + at, &one, sizeof one);
    }
    for (int at = 0; at < drawn; at++) {
        list[2 * kept + at] = kept + at;
        list[2 * kept + drawn + at] = 1;
    }
}
static Result read_back(void *to, size_t bytes) {
    static atomic_int reads;
    const float two = 2;
    int words = 0, kept = 0, drawn = 0;
    const char *head = getenv("SOFTSHARD_FAKE_HEAD");
    memset(to, 0, bytes);
    if (!reads++)
        for (size_t at = 0; at + sizeof two <= bytes; at += sizeof two) memcpy((char *)to + at, &two, sizeof two);
    else if (head && sscanf(head, "%d %d %d", &words, &kept, &drawn) == 3 && words >= 9 + 2 * (kept + drawn) && bytes % (4 * (size_t)words) == 0)
        for (size_t at = 0; at < bytes; at += 4 * (size_t)words) head_row((int32_t *)((char *)to + at), words, kept, drawn);
    return SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) { (void)from; (void)stream; return read_back(to, bytes); }
API cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) { return cuMemcpyDtoHAsync_v2(to, from, bytes, NULL); }

struct side { size_t x, y; int type; void *host; Address device; void *array; size_t pitch; };
struct copy { struct side from, to; size_t width, height; };
API cuMemcpy2DAsync_v2(const struct copy *copy, void *stream) {
    (void)stream;
    const struct side *to = &copy->to;
    for (size_t row = 0; to->type == 1 && row < copy->height; row++)
        read_back((char *)to->host + (to->y + row) * to->pitch + to->x, copy->width);
    return SUCCESS;
}

// Streams and events: everything is done when it is asked for, and by the events' clock a launch takes 50 milliseconds: what
// repeats a kernel until it has run for long enough soon has enough.
API cuStreamCreate(void **stream, unsigned flags) { (void)flags; *stream = malloc(1); return SUCCESS; }
API cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { (void)priority; return cuStreamCreate(stream, flags); }
API cuStreamDestroy_v2(void *stream) { (void)stream; return SUCCESS; }
API cuStreamSynchronize(void *stream) { (void)stream; return SUCCESS; }
API cuStreamWaitEvent(void *stream, void *event, unsigned flags) { (void)stream; (void)event; (void)flags; return SUCCESS; }
API cuStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return SUCCESS; }
API cuEventCreate(void **event, unsigned flags) { (void)flags; *event = calloc(1, sizeof launches); return SUCCESS; }
API cuEventDestroy_v2(void *event) { free(event); return SUCCESS; }
API cuEventRecord(void *event, void *stream) { (void)stream; *(unsigned long *)event = launches; return SUCCESS; }
API cuEventQuery(void *event) { (void)event; return SUCCESS; }
API cuEventSynchronize(void *event) { (void)event; return SUCCESS; }
API cuEventElapsedTime(float *milliseconds, void *start, void *end) { *milliseconds = 0.01f + 50 * (*(unsigned long *)end - *(unsigned long *)start); return SUCCESS; }
API cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) { return cuEventElapsedTime(milliseconds, start, end); }

// Host functions run at once: what waits for one goes on.
API cuLaunchHostFunc(void *stream, void (*function)(void *), void *data) { (void)stream; function(data); return SUCCESS; }

// Kernels: NVRTC has compiled them by the time they come here.
API cuModuleLoadData(void **module, const void *image) { (void)image; modules++; *module = malloc(1); return SUCCESS; }
API cuModuleLoadDataEx(void **module, const void *image, unsigned count, void *options, void *values) { (void)count; (void)options; (void)values; return cuModuleLoadData(module, image); }
API cuModuleUnload(void *module) { free(module); return SUCCESS; }
API cuModuleGetFunction(void **function, void *module, const char *name) { (void)name; *function = module; return SUCCESS; }
API cuFuncSetAttribute(void *function, int attribute, int value) { (void)function; (void)attribute; (void)value; return SUCCESS; }
API cuFuncGetAttribute(int *value, int attribute, void *function) { (void)function; (void)attribute; *value = 64; return SUCCESS; }
API cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream, void **parameters, void **extra) {
    (void)function; (void)gx; (void)gy; (void)gz; (void)bx; (void)by; (void)bz; (void)shared; (void)stream; (void)parameters; (void)extra;
    launches++;
    return SUCCESS;
}
API cuTensorMapEncodeTiled() { return SUCCESS; }
API cuTensorMapEncodeIm2col() { return SUCCESS; }
API cuTensorMapEncodeIm2colWide() { return SUCCESS; }
