/* What CPUID says to a process, and a way to hide AVX-512, VNNI and AMX from it.
 *
 * onnxruntime chooses its kernels by CPUID, so a CPU with AVX-512 runs the kernels of an AVX2 CPU where CPUID does not
 * mention AVX-512. Linux can make the instruction fault in a thread and those that it starts (arch_prctl,
 * ARCH_SET_CPUID, on CPUs whose flags list cpuid_fault). The handler below executes it and clears the bits of leaf 7.
 *
 *     cc -O2 -shared -fPIC -o hide_avx512.so hide_avx512.c
 *     LD_PRELOAD=./hide_avx512.so HIDE_AVX512=1 python ...
 *
 * Without HIDE_AVX512 nothing is hidden, and the library only has read_cpuid, which says what a process is told.
 * libc has chosen its own functions by then, and /proc/cpuinfo still tells the truth: only CPUID is changed.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef ARCH_SET_CPUID
#define ARCH_SET_CPUID 0x1012
#endif

#define BIT(n) (1u << (n))

/* What is cleared in leaf 7 (Intel's manual, volume 2, CPUID). */
/* subleaf 0, EBX: AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL */
static const uint32_t LEAF7_0_EBX = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
/* subleaf 0, ECX: AVX-512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
static const uint32_t LEAF7_0_ECX = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
/* subleaf 0, EDX: AVX-512 4VNNIW, 4FMAPS, VP2INTERSECT; AMX-BF16; AVX-512 FP16; AMX-TILE, AMX-INT8 */
static const uint32_t LEAF7_0_EDX = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
/* subleaf 1, EAX: AVX-VNNI, AVX-512 BF16, AMX-FP16, AVX-IFMA */
static const uint32_t LEAF7_1_EAX = BIT(4) | BIT(5) | BIT(21) | BIT(23);
/* subleaf 1, EDX: AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10 */
static const uint32_t LEAF7_1_EDX = BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19);

/* EAX, EBX, ECX and EDX of a leaf, as this thread is told. */
void read_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]) {
    __asm__ volatile("cpuid"
                     : "=a"(registers[0]), "=b"(registers[1]), "=c"(registers[2]), "=d"(registers[3])
                     : "a"(leaf), "c"(subleaf));
}

static long let_cpuid_run(int allowed) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *saved = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)saved[REG_RIP];
    /* A CPUID that faults comes from the kernel, without an address; every other fault is what it always was. */
    if (info->si_code != SI_KERNEL || code[0] != 0x0f || code[1] != 0xa2) {
        signal(number, SIG_DFL);
        return;
    }
    uint32_t leaf = (uint32_t)saved[REG_RAX], subleaf = (uint32_t)saved[REG_RCX], found[4];
    let_cpuid_run(1);
    read_cpuid(leaf, subleaf, found);
    let_cpuid_run(0);
    if (leaf == 7 && subleaf == 0) {
        found[1] &= ~LEAF7_0_EBX;
        found[2] &= ~LEAF7_0_ECX;
        found[3] &= ~LEAF7_0_EDX;
    }
    if (leaf == 7 && subleaf == 1) {
        found[0] &= ~LEAF7_1_EAX;
        found[3] &= ~LEAF7_1_EDX;
    }
    saved[REG_RAX] = found[0];
    saved[REG_RBX] = found[1];
    saved[REG_RCX] = found[2];
    saved[REG_RDX] = found[3];
    saved[REG_RIP] += 2; /* past the instruction */
}

__attribute__((constructor)) static void hide(void) {
    if (!getenv("HIDE_AVX512")) return;
    struct sigaction action = {0};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, NULL);
    if (let_cpuid_run(0)) fputs("hide_avx512: this CPU or kernel cannot make CPUID fault; nothing is hidden\n", stderr);
}
