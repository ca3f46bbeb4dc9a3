// Included before every file of the CPU library on x86-64 Linux: it then runs on glibc 2.28, as torch's own wheels do.
//
// A newer glibc gives exp and pow a second version (2.29) whose only change is that errno is set elsewhere. The old one
// is there on every x86-64 glibc.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
__asm__(".symver exp,exp@GLIBC_2.2.5");
__asm__(".symver pow,pow@GLIBC_2.2.5");
__asm__(".symver log,log@GLIBC_2.2.5");
#endif
