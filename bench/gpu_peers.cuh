// gpu_peers.cuh - of bench/gpu.cu: products by cuBLASLt, convolutions by cuDNN, each where its headers are.

#ifndef MLK_BENCH_GPU_PEERS_CUH
#define MLK_BENCH_GPU_PEERS_CUH

#include "gpu_util.cuh"

#if defined(BENCH_CUBLAS)
#include <cublasLt.h>
#endif
#if defined(BENCH_CUDNN)
#include <cudnn.h>
#endif

// ---- cuBLASLt ------------------------------------------------------------------------------------------------------

enum class sums { strict, tf32 }; // how f32 operands are multiplied

#if defined(BENCH_CUBLAS)
// D = A B, row-major; A [M, K] or, transposed, stored as [K, M]; B [K, N] or stored as [N, K]. Of the algorithms that
// the heuristic offers, the one that is fastest on these operands.
class blas_product {
public:
  blas_product(const machine &m, type in, sums how, int64_t rows, int64_t columns, int64_t depth, bool a_transposed,
               bool b_transposed)
      : stream(m.stream) {
    const cudaDataType_t t = in == type::f32 ? CUDA_R_32F : in == type::f16 ? CUDA_R_16F : CUDA_R_16BF;
    const cublasComputeType_t compute = in == type::f32 && how == sums::tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                             : CUBLAS_COMPUTE_32F;
    // a row-major matrix is its transpose, column by column: D' = B' A'
    const cublasOperation_t op_a = b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                            op_b = a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    const uint64_t n = static_cast<uint64_t>(columns), rows_ = static_cast<uint64_t>(rows),
                   k = static_cast<uint64_t>(depth);
    ok = cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS &&
         cublasLtMatmulDescCreate(&operation, compute, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
         cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a) ==
             CUBLAS_STATUS_SUCCESS &&
         cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b) ==
             CUBLAS_STATUS_SUCCESS &&
         layout(&first, t, b_transposed ? k : n, b_transposed ? n : k) &&
         layout(&second, t, a_transposed ? rows_ : k, a_transposed ? k : rows_) && layout(&result, t, n, rows_);
    if (ok) CUDA(cudaMalloc(&workspace, workspace_bytes));
  }
  blas_product(const blas_product &) = delete;
  blas_product &operator=(const blas_product &) = delete;
  ~blas_product() {
    if (result) cublasLtMatrixLayoutDestroy(result);
    if (second) cublasLtMatrixLayoutDestroy(second);
    if (first) cublasLtMatrixLayoutDestroy(first);
    if (operation) cublasLtMatmulDescDestroy(operation);
    if (handle) cublasLtDestroy(handle);
    if (workspace) cudaFree(workspace);
  }
  bool run(const void *a, const void *b, void *d) {
    if (!ok || (!chosen && !choose(a, b, d))) return false;
    return once(a, b, d, algorithm) == CUBLAS_STATUS_SUCCESS;
  }

private:
  static constexpr size_t workspace_bytes = 64u << 20;
  cudaStream_t stream;
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t first = nullptr, second = nullptr, result = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
  void *workspace = nullptr;
  bool ok = false, chosen = false;

  static bool layout(cublasLtMatrixLayout_t *made, cudaDataType_t t, uint64_t rows, uint64_t columns) {
    return cublasLtMatrixLayoutCreate(made, t, rows, columns, static_cast<int64_t>(rows)) == CUBLAS_STATUS_SUCCESS;
  }
  cublasStatus_t once(const void *a, const void *b, void *d, const cublasLtMatmulAlgo_t &how) {
    const float one = 1, zero = 0;
    return cublasLtMatmul(handle, operation, &one, b, first, a, second, &zero, d, result, d, result, &how, workspace,
                          workspace_bytes, stream);
  }
  bool choose(const void *a, const void *b, void *d) {
    constexpr int most = 16;
    cublasLtMatmulPreference_t preference = nullptr;
    cublasLtMatmulHeuristicResult_t offered[most];
    int count = 0;
    if (cublasLtMatmulPreferenceCreate(&preference) != CUBLAS_STATUS_SUCCESS) return false;
    const size_t limit = workspace_bytes;
    const bool asked = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                            &limit, sizeof limit) == CUBLAS_STATUS_SUCCESS &&
                       cublasLtMatmulAlgoGetHeuristic(handle, operation, first, second, result, result, preference,
                                                      most, offered, &count) == CUBLAS_STATUS_SUCCESS;
    cublasLtMatmulPreferenceDestroy(preference);
    double best = 1e30;
    stopwatch watch(stream);
    for (int i = 0; asked && i < count; i++) {
      if (offered[i].state != CUBLAS_STATUS_SUCCESS) continue;
      const auto call = [&] { return once(a, b, d, offered[i].algo) == CUBLAS_STATUS_SUCCESS; };
      if (watch.of(1, call) < 0) continue;
      const double seconds = watch.of(3, call);
      if (seconds > 0 && seconds < best) best = seconds, algorithm = offered[i].algo, chosen = true;
    }
    return chosen;
  }
};

#endif

// ---- cuDNN ---------------------------------------------------------------------------------------------------------

#if defined(BENCH_CUDNN)
#include "gpu_checks.cuh"

// A convolution or a gradient of it, channels last; cuDNN times its own algorithms and the fastest is taken.
class dnn_conv {
public:
  dnn_conv(const machine &m, conv_op what, type t, const image_shape &g) : stream(m.stream), op(what) {
    const cudnnDataType_t of = t == type::f32   ? CUDNN_DATA_FLOAT
                               : t == type::f16 ? CUDNN_DATA_HALF
                                                : CUDNN_DATA_BFLOAT16;
    const auto i = [](int64_t size) { return static_cast<int>(size); };
    ok = good(cudnnCreate(&handle)) && good(cudnnSetStream(handle, m.stream)) &&
         good(cudnnCreateTensorDescriptor(&x)) && good(cudnnCreateTensorDescriptor(&y)) &&
         good(cudnnCreateFilterDescriptor(&w)) && good(cudnnCreateConvolutionDescriptor(&conv)) &&
         good(cudnnSetTensor4dDescriptor(x, CUDNN_TENSOR_NHWC, of, i(g.n), i(g.c), i(g.h), i(g.w))) &&
         good(cudnnSetTensor4dDescriptor(y, CUDNN_TENSOR_NHWC, of, i(g.n), i(g.k), i(g.oh()), i(g.ow()))) &&
         good(cudnnSetFilter4dDescriptor(w, of, CUDNN_TENSOR_NHWC, i(g.k), i(g.c), i(g.r), i(g.s))) &&
         good(cudnnSetConvolution2dDescriptor(conv, i(g.pad), i(g.pad), i(g.stride), i(g.stride), 1, 1,
                                              CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT)) &&
         good(cudnnSetConvolutionMathType(conv, t == type::f32 ? CUDNN_FMA_MATH : CUDNN_TENSOR_OP_MATH));
    if (ok) CUDA(cudaMalloc(&workspace, workspace_bytes));
  }
  dnn_conv(const dnn_conv &) = delete;
  dnn_conv &operator=(const dnn_conv &) = delete;
  ~dnn_conv() {
    if (conv) cudnnDestroyConvolutionDescriptor(conv);
    if (w) cudnnDestroyFilterDescriptor(w);
    if (y) cudnnDestroyTensorDescriptor(y);
    if (x) cudnnDestroyTensorDescriptor(x);
    if (handle) cudnnDestroy(handle);
    if (workspace) cudaFree(workspace);
  }
  bool run(void *xp, void *wp, void *yp) {
    const float one = 1, zero = 0;
    if (!ok || (!chosen && !choose(xp, wp, yp))) return false;
    if (op == conv_op::forward)
      return good(
          cudnnConvolutionForward(handle, &one, x, xp, w, wp, conv, forward, workspace, workspace_bytes, &zero, y, yp));
    if (op == conv_op::grad_input)
      return good(cudnnConvolutionBackwardData(handle, &one, w, wp, y, yp, conv, input, workspace, workspace_bytes,
                                               &zero, x, xp));
    return good(cudnnConvolutionBackwardFilter(handle, &one, x, xp, y, yp, conv, weights, workspace, workspace_bytes,
                                               &zero, w, wp));
  }

private:
  static constexpr size_t workspace_bytes = 1u << 30;
  cudaStream_t stream;
  conv_op op;
  cudnnHandle_t handle = nullptr;
  cudnnTensorDescriptor_t x = nullptr, y = nullptr;
  cudnnFilterDescriptor_t w = nullptr;
  cudnnConvolutionDescriptor_t conv = nullptr;
  cudnnConvolutionFwdAlgo_t forward = CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM;
  cudnnConvolutionBwdDataAlgo_t input = CUDNN_CONVOLUTION_BWD_DATA_ALGO_0;
  cudnnConvolutionBwdFilterAlgo_t weights = CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0;
  void *workspace = nullptr;
  bool ok = false, chosen = false;

  static bool good(cudnnStatus_t status) { return status == CUDNN_STATUS_SUCCESS; }
  // cuDNN sorts what it tried by time; the first that worked, with the math type it worked with.
  template <class P, class A> bool take(const P *tried, int count, A *algorithm) {
    for (int i = 0; i < count && !chosen; i++)
      if (good(tried[i].status) && tried[i].memory <= workspace_bytes &&
          good(cudnnSetConvolutionMathType(conv, tried[i].mathType)))
        *algorithm = tried[i].algo, chosen = true;
    return chosen;
  }
  bool choose(void *xp, void *wp, void *yp) {
    constexpr int most = 8;
    int count = 0;
    if (op == conv_op::forward) {
      cudnnConvolutionFwdAlgoPerf_t tried[most];
      return good(cudnnFindConvolutionForwardAlgorithmEx(handle, x, xp, w, wp, conv, y, yp, most, &count, tried,
                                                         workspace, workspace_bytes)) &&
             take(tried, count, &forward);
    }
    if (op == conv_op::grad_input) {
      cudnnConvolutionBwdDataAlgoPerf_t tried[most];
      return good(cudnnFindConvolutionBackwardDataAlgorithmEx(handle, w, wp, y, yp, conv, x, xp, most, &count, tried,
                                                              workspace, workspace_bytes)) &&
             take(tried, count, &input);
    }
    cudnnConvolutionBwdFilterAlgoPerf_t tried[most];
    return good(cudnnFindConvolutionBackwardFilterAlgorithmEx(handle, x, xp, y, yp, conv, w, wp, most, &count, tried,
                                                              workspace, workspace_bytes)) &&
           take(tried, count, &weights);
  }
};
#endif

#endif
