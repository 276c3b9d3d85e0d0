// The C ABI of libopfuse_plugins.so: every op without TensorRT, for tests and other runtimes.
//
// Functions that return int return 0, or -1 with the reason in opfuse_last_error(); no function
// throws or exits.  Types are numbered as in ONNX TensorProto.DataType, attributes as in ONNX
// AttributeProto.AttributeType.  An instance may be used by several threads at once.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define OPFUSE_ABI_VERSION 3
#define OPFUSE_MAX_RANK 8
#define OPFUSE_COMM_CARD 512

#ifdef __cplusplus
extern "C" {
#endif

typedef struct opfuse_op opfuse_op;  // an instance: an op with its attributes
typedef void* opfuse_stream;         // a cudaStream_t

typedef struct {
    char const* name;
    int32_t type;      // 1 FLOAT, 2 INT, 3 STRING
    int32_t count;     // 1, or the length of a STRING; unused in a listing
    void const* data;  // float*, int64_t*, or char*; unused in a listing
} opfuse_attribute;

typedef struct {
    char const* name;
    char const* version;
    int32_t min_inputs;
    int32_t max_inputs;  // trailing inputs beyond min_inputs may be absent
    int32_t outputs;
    int32_t attribute_count;
} opfuse_op_info;

typedef struct {
    void* data;    // on the device; unused where only the shape is asked for
    int32_t type;  // 1 float, 10 float16, 16 bfloat16, ...
    int32_t rank;
    int64_t dims[OPFUSE_MAX_RANK];
} opfuse_tensor;

// Memory that is copied: `unit` bytes that lie together at each place of a box, last axis
// innermost.
typedef struct {
    void const* source;  // both on the device
    void* target;
    int32_t unit;   // 1, 2, 4, 8, or 16; addresses and strides are multiples of it
    int32_t rank;   // 0 for one unit alone
    int32_t early;  // 1 where the copy may run while what is ahead of it on the stream still does
    int64_t sizes[OPFUSE_MAX_RANK];           // in units
    int64_t source_strides[OPFUSE_MAX_RANK];  // bytes from one place to the next
    int64_t target_strides[OPFUSE_MAX_RANK];
} opfuse_box;

// ---- the library
int32_t opfuse_abi_version(void);
char const* opfuse_version(void);        // of the package, such as "0.1.0"
char const* opfuse_architectures(void);  // such as "80-real 90-real 100-virtual"
int32_t opfuse_tensorrt_headers(void);   // NV_TENSORRT_VERSION of the headers, such as 101400
char const* opfuse_last_error(void);     // of this thread; valid until its next failure
int32_t opfuse_op_count(void);
int opfuse_describe_op(int32_t index, opfuse_op_info* info);
int opfuse_describe_attribute(int32_t index, int32_t attribute, opfuse_attribute* info);

// ---- an instance
opfuse_op* opfuse_create(char const* name, opfuse_attribute const* attributes, int32_t count);
void opfuse_destroy(opfuse_op* op);

// 1 where position `at` of types [inputs..., outputs...] is well typed, 0 where not.
int opfuse_supports(opfuse_op const* op, int32_t at, int32_t const* types, int32_t inputs,
                    int32_t outputs);
// Fills in type, rank, and dims of each output from those of the inputs.
int opfuse_infer(opfuse_op const* op, opfuse_tensor const* inputs, int32_t input_count,
                 opfuse_tensor* outputs, int32_t output_count);
// Bytes of scratch memory that opfuse_enqueue needs for these inputs, or -1.
int64_t opfuse_workspace_size(opfuse_op const* op, opfuse_tensor const* inputs,
                              int32_t input_count);
// Values of the attribute `tactic` that are worth timing for these inputs, at most `capacity` of
// them; how many there are, 0 for an op without, or -1.  0 is the op's own choice and not among
// them.  Any of them gives right results for any inputs.
int32_t opfuse_tactics(opfuse_op const* op, opfuse_tensor const* inputs, int32_t input_count,
                       int32_t* tactics, int32_t capacity);
// Launches on `stream`; allocates nothing and waits for nothing, so it may be captured in a graph.
int opfuse_enqueue(opfuse_op const* op, opfuse_tensor const* inputs, int32_t input_count,
                   opfuse_tensor const* outputs, int32_t output_count, void* workspace,
                   opfuse_stream stream);

// ---- without an instance
// Copies boxes, of which none overlaps the target of another, as opfuse_enqueue launches; a box of
// 2^31 units or more is refused.
int opfuse_copy(opfuse_box const* boxes, int32_t count, opfuse_stream stream);

// ---- the communicator: the ranks that AllReduce, AllReduceAddNorm, and AllGather speak to
//
// At most one a process, for all instances.  Every rank opens it, hands its card to all others by
// whatever way the host has, and joins with all cards; all ranks then enqueue the same collectives
// in the same order, one at a time, and close it when all have finished.  Copies of this library in
// one process share it.
//
// Opens it on the current device.  size: 1 to 8.  timeout_ms: how long a kernel waits for others.
// nccl: a path, null for libnccl.so.2, "" to do without.  card: OPFUSE_COMM_CARD bytes, filled in.
int opfuse_comm_open(int32_t rank, int32_t size, int64_t timeout_ms, char const* nccl, void* card);
// cards: those of all ranks in order.  Returns when all ranks have called it, where there is NCCL.
int opfuse_comm_join(void const* cards);
// -1 where there is none, 0 well, 1 aborted, 2 a kernel has waited too long.  After 1 and 2 what
// was enqueued gave rubbish, and nothing can be enqueued any more.
int32_t opfuse_comm_state(void);
// From any thread: kernels that wait for other ranks end.
void opfuse_comm_abort(void);
char const* opfuse_comm_transport(void);  // such as "peer memory, NCCL 2.28.9"
int opfuse_comm_close(void);

#ifdef __cplusplus
}
#endif
