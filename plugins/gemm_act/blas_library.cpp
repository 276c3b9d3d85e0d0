#include "blas_library.h"

#include <dlfcn.h>

namespace opfuse {
namespace {

template <class Function>
bool find(void* library, Function& function, char const* name) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
}

BlasLibrary load() {
    void* library = dlopen("libcublasLt.so.13", RTLD_LAZY | RTLD_LOCAL);
    if (!library) library = dlopen("libcublasLt.so.12", RTLD_LAZY | RTLD_LOCAL);
    if (!library) return {};
    BlasLibrary blas;
    bool const found = find(library, blas.create, "cublasLtCreate") &&
                       find(library, blas.create_product, "cublasLtMatmulDescCreate") &&
                       find(library, blas.set_product, "cublasLtMatmulDescSetAttribute") &&
                       find(library, blas.create_layout, "cublasLtMatrixLayoutCreate") &&
                       find(library, blas.create_preference, "cublasLtMatmulPreferenceCreate") &&
                       find(library, blas.set_preference, "cublasLtMatmulPreferenceSetAttribute") &&
                       find(library, blas.choose, "cublasLtMatmulAlgoGetHeuristic") &&
                       find(library, blas.multiply, "cublasLtMatmul");
    return found ? blas : BlasLibrary{};
}

}  // namespace

BlasLibrary const& blas_library() {
    static BlasLibrary const library = load();
    return library;
}

}  // namespace opfuse
