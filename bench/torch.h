/* torch's attention on the CPU (the one that scaled_dot_product_attention chooses), through the C interface of its
   library that compiled models call: no Python, no C++. Tensors are handles; every function but those that return a
   number returns 0 for success. */
#ifndef BENCH_TORCH_H
#define BENCH_TORCH_H

typedef void *torch_tensor;

/* at::mean_out, add_out and mul_ by their C++ symbols: a handle is a pointer to an at::Tensor, and so is a reference to
   one. The other arguments are laid out as c10 does: an optional list of axes, an optional element type, a number
   with its type in front. */
typedef struct torch_axes {
  const int64_t *axes;
  size_t count;
  char given;
} torch_axes;
typedef struct torch_type {
  int8_t type;
  char given;
} torch_type;
typedef struct torch_number {
  int32_t tag; /* 0: a double */
  int32_t unused[3];
  double value, imaginary;
} torch_number;
typedef torch_tensor torch_mean_fn(torch_tensor x, torch_axes axes, char keep, torch_type type, torch_tensor out);
typedef torch_tensor torch_add_fn(torch_tensor a, torch_tensor b, const torch_number *alpha, torch_tensor out);
typedef torch_tensor torch_scale_fn(torch_tensor x, const torch_number *factor);

static struct {
  int (*from_blob)(void *data, int64_t rank, const int64_t *shape, const int64_t *stride, int64_t offset, int32_t dtype,
                   int32_t device, int32_t device_index, torch_tensor *out);
  int (*destroy)(torch_tensor);
  int (*copy_handle)(torch_tensor, torch_tensor *out);
  int (*data)(torch_tensor, void **out);
  int (*strides)(torch_tensor, int64_t **out);
  int (*forward)(torch_tensor q, torch_tensor k, torch_tensor v, double dropout, int32_t causal, torch_tensor *mask,
                 double *scale, torch_tensor *out, torch_tensor *lse);
  int (*backward)(torch_tensor dout, torch_tensor q, torch_tensor k, torch_tensor v, torch_tensor out, torch_tensor lse,
                  double dropout, int32_t causal, torch_tensor *mask, double *scale, torch_tensor *dq, torch_tensor *dk,
                  torch_tensor *dv);
  int (*dispatch)(const char *name, const char *overload, uint64_t *stack);
  torch_mean_fn *mean;
  torch_add_fn *add;
  torch_scale_fn *scale;
} torch;

static int torch_load(peer *p) {
  void *library = open_library("torch", "libtorch_cpu.so");
  cxx_string (*level)(void), (*config)(void);
  size_t used;
  int found = 1;
  if (!library) return peer_absent(p, "torch", "libtorch_cpu.so");
#define FIND(member, name) found &= find_symbol(library, name, &torch.member)
  FIND(from_blob, "aoti_torch_create_tensor_from_blob");
  FIND(destroy, "aoti_torch_delete_tensor_object");
  FIND(copy_handle, "aoti_torch_new_tensor_handle");
  FIND(data, "aoti_torch_get_data_ptr");
  FIND(strides, "aoti_torch_get_strides");
  FIND(forward, "aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu");
  FIND(backward, "aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu_backward");
  FIND(dispatch, "aoti_torch_call_dispatcher");
  FIND(mean, "_ZN2at4_ops8mean_out4callERKNS_6TensorEN3c1016OptionalArrayRefIlEEbSt8optionalINS5_10ScalarTypeEERS2_");
  FIND(add, "_ZN2at4_ops7add_out4callERKNS_6TensorES4_RKN3c106ScalarERS2_");
  FIND(scale, "_ZN2at4_ops11mul__Scalar4callERNS_6TensorERKN3c106ScalarE");
#undef FIND
  if (!found || !find_symbol(library, "_ZN2at15set_num_threadsEi", &torch_threads))
    return peer_absent(p, "torch", "libtorch_cpu.so");
  peer_version(p, "torch");
  if (find_symbol(library, "_ZN2at18get_cpu_capabilityB5cxx11Ev", &level))
    text(p->core, sizeof p->core, "%s", level().data);
  used = strlen(p->core);
  if (find_symbol(library, "_ZN2at11show_configB5cxx11Ev", &config)) {
    const char *mkl = strstr(config().data, "Math Kernel Library Version ");
    if (mkl) mkl += strlen("Math Kernel Library Version ");
    if (mkl) text(p->core + used, sizeof p->core - used, ", products by MKL %.*s", (int)strcspn(mkl, " \n"), mkl);
  }
  return 1;
}

/* A handle on a view; NULL when torch refuses it. */
static torch_tensor torch_view(mlk_tensor t) {
  static const int32_t dtypes[MLK_DTYPE_COUNT] = {6, 4, 5, 15, 0}; /* c10::ScalarType */
  torch_tensor out = NULL;
  t = mlki_explicit_strides(t);
  return torch.from_blob(t.data, t.rank, t.shape, t.stride, 0, dtypes[t.dtype], 0, -1, &out) == 0 ? out : NULL;
}

/* The view behind a handle that has shape's shape and dtype. Data NULL: no tensor. */
static mlk_tensor torch_result(torch_tensor handle, mlk_tensor shape) {
  int64_t *stride;
  shape.data = NULL;
  if (handle && torch.strides(handle, &stride) == 0 && torch.data(handle, &shape.data) == 0)
    memcpy(shape.stride, stride, (size_t)shape.rank * sizeof *stride);
  return shape;
}

static void torch_release(torch_tensor *handle) {
  if (*handle) torch.destroy(*handle);
  *handle = NULL;
}

/* scaled_dot_product_attention as Python calls it, with enable_gqa: k and v have fewer heads than q. The interface
   takes its arguments, new handles for tensors, in words on a stack, and returns the result in the first one. */
static torch_tensor torch_grouped(torch_tensor q, torch_tensor k, torch_tensor v, int causal) {
  uint64_t stack[8] = {
      0}; /* q, k, v, mask, dropout, causal, scale, grouped; 0 also for no mask and the default scale */
  torch_tensor operands[3], out;
  int i;
  operands[0] = q, operands[1] = k, operands[2] = v;
  for (i = 0; i < 3; i++) {
    torch_tensor copy = NULL;
    if (torch.copy_handle(operands[i], &copy) != 0) return NULL;
    memcpy(&stack[i], &copy, sizeof copy);
  }
  stack[5] = causal != 0, stack[7] = 1;
  if (torch.dispatch("aten::scaled_dot_product_attention", "", stack) != 0) return NULL;
  memcpy(&out, &stack[0], sizeof out);
  return out;
}

#endif
