/* The Tidemill ABI, version 1, for job modules that are not written in Rust. docs/abi.md says what each function does and
 * what the bytes mean; the crate beside this file is the authority. Only declarations: it never holds code. */
#ifndef TIDEMILL_ABI_H
#define TIDEMILL_ABI_H

#include <stdint.h>

#define TIDEMILL_ABI_VERSION 1

#define TIDEMILL_IMPORT(name) __attribute__((import_module("tidemill"), import_name(#name)))
#define TIDEMILL_EXPORT(name) __attribute__((export_name(#name)))

/* Targets of `emit`. */
#define TIDEMILL_TARGET_ALL UINT32_MAX

/* The split of a batch that comes from an edge. */
#define TIDEMILL_SPLIT_NONE UINT64_MAX

/* Levels of `log`. */
enum { TIDEMILL_LOG_OUT = 0, TIDEMILL_LOG_ERR = 1, TIDEMILL_LOG_PANIC = 2 };

/* The status of a step, its lowest eight bits; the others are the next deadline in milliseconds, 0 for none. */
enum { TIDEMILL_DONE = 0, TIDEMILL_MORE = 1, TIDEMILL_ENDED = 2 };

static inline uint64_t tidemill_step(uint8_t status, uint64_t deadline_ms) {
    return deadline_ms << 8 | status;
}

static inline uint64_t tidemill_packed(uint32_t ptr, uint32_t len) {
    return (uint64_t)ptr << 32 | len;
}

/* What the host offers. */
TIDEMILL_IMPORT(emit) void tidemill_emit(uint32_t output, uint32_t target, const uint8_t *ptr, uint32_t len);
TIDEMILL_IMPORT(log) void tidemill_log(uint32_t level, const uint8_t *ptr, uint32_t len);

/* What a module defines. */
TIDEMILL_EXPORT(tidemill_abi_version) uint32_t tidemill_abi_version(void);
TIDEMILL_EXPORT(tidemill_allocate) uint8_t *tidemill_allocate(uint32_t len);
TIDEMILL_EXPORT(tidemill_describe) uint64_t tidemill_describe(const uint8_t *ptr, uint32_t len);
TIDEMILL_EXPORT(tidemill_open) uint64_t tidemill_open(const uint8_t *ptr, uint32_t len);
TIDEMILL_EXPORT(tidemill_process)
uint64_t tidemill_process(uint32_t port, uint64_t split, const uint8_t *ptr, uint32_t len, uint64_t now_ms);
TIDEMILL_EXPORT(tidemill_resume) uint64_t tidemill_resume(uint64_t now_ms);
TIDEMILL_EXPORT(tidemill_poll) uint64_t tidemill_poll(uint64_t now_ms);
TIDEMILL_EXPORT(tidemill_watermark) uint64_t tidemill_watermark(uint32_t port, int64_t timestamp_ms, uint64_t now_ms);
TIDEMILL_EXPORT(tidemill_timer) uint64_t tidemill_timer(uint64_t now_ms);
TIDEMILL_EXPORT(tidemill_finish) uint64_t tidemill_finish(uint64_t now_ms);
TIDEMILL_EXPORT(tidemill_flush) void tidemill_flush(void);

/* Optional. */
TIDEMILL_EXPORT(tidemill_records) int64_t tidemill_records(uint32_t which);

#endif
