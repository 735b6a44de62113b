# Read by CMake when llama.cpp's "ggml" is configured (CMAKE_PROJECT_ggml_INCLUDE, deploy/install.py):
# compiles our kernels into its library for the CPU, in place of the functions they are named for.
# Without AVX2 it adds none of them.
set(OUR_KERNELS "${CMAKE_CURRENT_LIST_DIR}")

# Not llama.cpp's products on AMX tiles: they would take the weights from our kernels, and compiled by
# GCC 12 they end the process (only 8 of the 64 bytes that set the tiles up are written).
if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  add_compile_options(-U__AMX_INT8__)
endif()

set(OUR_KERNELS_REPLACE
  ggml_graph_compute
  ggml_compute_forward_flash_attn_ext ggml_compute_forward_fwht
  ggml_compute_forward_mul_mat_tiled ggml_compute_forward_mul_mat_id_tiled
  ggml_gemm_iq4_nl_8x8_q8_0 ggml_gemv_iq4_nl_8x8_q8_0
  ggml_gemm_q4_0_8x8_q8_0 ggml_gemv_q4_0_8x8_q8_0)

function(find_out_if_avx2 result)
  include(CheckCXXSourceCompiles)
  set(CMAKE_REQUIRED_FLAGS "-march=native")
  set(CMAKE_REQUIRED_QUIET ON)
  check_cxx_source_compiles("
    #if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
    #error
    #endif
    int main() { return 0; }" OUR_KERNELS_FIT)
  set(${result} "${OUR_KERNELS_FIT}" PARENT_SCOPE)
endfunction()

function(add_our_kernels)
  find_out_if_avx2(fit)
  if(NOT GGML_NATIVE OR NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR NOT fit)
    return()
  endif()
  foreach(name attention awake matmul_packed matmul_rows rotation)
    set(file "${OUR_KERNELS}/${name}.cpp")
    target_sources(ggml-cpu PRIVATE "${file}")
    # No two operations made one: all of a number's must be the same wherever the compiler puts them.
    set_source_files_properties("${file}" TARGET_DIRECTORY ggml-cpu
      PROPERTIES COMPILE_OPTIONS "-ffp-contract=off")
  endforeach()
  foreach(name IN LISTS OUR_KERNELS_REPLACE)
    target_link_options(ggml-cpu PRIVATE "-Wl,--wrap=${name}")
  endforeach()
endfunction()

# In llama.cpp's library itself, which is made after this project.
function(add_cache_pages)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND TARGET llama)
    get_property(folder GLOBAL PROPERTY OUR_KERNELS)
    target_sources(llama PRIVATE "${folder}/cache_pages.cpp")
    target_link_options(llama PRIVATE "-Wl,--wrap=ggml_backend_buffer_clear")
  endif()
endfunction()

cmake_language(DEFER CALL add_our_kernels)
set_property(GLOBAL PROPERTY OUR_KERNELS "${OUR_KERNELS}")
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL add_cache_pages)
