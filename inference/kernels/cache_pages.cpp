// The cache of keys and values takes memory as it is filled.
//
// llama.cpp writes zeros over all of a new cache, which brings every page of it into memory: 400 MB
// for eight answers of 4,096 tokens with the smallest model. Pages that were never written, or are
// given back to the kernel, read as zeros too.

#include "ggml-backend.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

extern "C" void __real_ggml_backend_buffer_clear(ggml_backend_buffer_t, uint8_t);
extern "C" void __wrap_ggml_backend_buffer_clear(ggml_backend_buffer_t, uint8_t);

namespace {

// Whether what lies there is memory of the process's own: a mapped file would show its contents again.
bool is_plain(ggml_backend_buffer_t buffer) {
    return ggml_backend_buffer_get_type(buffer) == ggml_backend_cpu_buffer_type();
}

// Zeros by giving whole pages back, and by writing where a page is shared with something else.
bool give_back(char * begin, size_t size) {
    const uintptr_t page = sysconf(_SC_PAGESIZE), start = reinterpret_cast<uintptr_t>(begin);
    const uintptr_t first = (start + page - 1) / page * page, last = (start + size) / page * page;
    if (last <= first ||
        madvise(reinterpret_cast<void *>(first), last - first, MADV_DONTNEED) != 0) {
        return false;  // locked into memory, or too small
    }
    memset(begin, 0, first - start);
    memset(reinterpret_cast<void *>(last), 0, start + size - last);
    return true;
}

}  // namespace

void __wrap_ggml_backend_buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    char * begin = static_cast<char *>(ggml_backend_buffer_get_base(buffer));
    if (value != 0 || !is_plain(buffer) || !give_back(begin, ggml_backend_buffer_get_size(buffer))) {
        __real_ggml_backend_buffer_clear(buffer, value);
    }
}
