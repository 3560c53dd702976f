"""Makes the seeds of fuzz_archive, fuzz_picture, fuzz_array and fuzz_labels: python3 make_data_corpus.py corpus

Pillow 9.4.0, NumPy 1.24, zstd 1.5.4; other versions compress to other bytes.
"""
import io, os, sys, tarfile, zipfile, gzip, struct, json, subprocess
from PIL import Image
import numpy as np
root=sys.argv[1]
rng=np.random.RandomState(1)
def w(d,n,b):
    os.makedirs(f'{root}/{d}',exist_ok=True); open(f'{root}/{d}/{n}','wb').write(b)
def img(a,fmt,mode=None,**k):
    b=io.BytesIO(); im=Image.fromarray(a)
    if mode: im=im.convert(mode)
    im.save(b,fmt,**k); return b.getvalue()
rgb=rng.randint(0,255,(6,5,3)).astype(np.uint8); rgba=rng.randint(0,255,(6,5,4)).astype(np.uint8); g=rng.randint(0,255,(6,5)).astype(np.uint8)
P={'rgb.png':img(rgb,'PNG'),'rgba.png':img(rgba,'PNG'),'grey.png':img(g,'PNG'),'palette.png':img(rgb,'PNG','P'),'bit.png':img(g>99,'PNG'),'la.png':img(rgba,'PNG','LA'),
 'wide.png':img(g.astype(np.uint16)*257,'PNG'),'rgb.jpg':img(rgb,'JPEG',quality=70),'grey.jpg':img(g,'JPEG',quality=70),'progressive.jpg':img(rgb,'JPEG',quality=70,progressive=True),'cmyk.jpg':img(rgb,'JPEG','CMYK',quality=50),'turned.jpg':img(rgb,'JPEG',quality=70,exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'),
 'lossy.webp':img(rgb,'WEBP',quality=50),'lossless.webp':img(rgb,'WEBP',lossless=True),'alpha.webp':img(rgba,'WEBP',lossless=True),'lossy_alpha.webp':img(rgba,'WEBP',quality=50)}
b=io.BytesIO(); Image.fromarray(rgb).save(b,'WEBP',save_all=True,append_images=[Image.fromarray(rgb[::-1].copy())]); P['animated.webp']=b.getvalue()
i=P['rgb.png']; import zlib
h=i[12:16]+struct.pack('>II',100000,100000)+i[24:29]; P['huge.png']=i[:12]+h+struct.pack('>I',zlib.crc32(h))+i[33:]
P['cut.png']=i[:60]
for n,v in P.items(): w('picture',n,v)
def tar(fmt,mode,entries):
    b=io.BytesIO()
    t=tarfile.open(fileobj=b,mode=mode,format=fmt)
    for n,d,*k in entries:
        ti=tarfile.TarInfo(n); ti.size=len(d)
        if k: ti.type=k[0]; ti.linkname=k[1] if len(k)>1 else ''
        t.addfile(ti,io.BytesIO(d))
    t.close(); return b.getvalue()
E=[('d/a.txt',b'hello'),('d/s.txt',b'skipped'),('b',b'x'*700)]
def trim(b): return b.rstrip(b'\0')+b'\0'*1024 if len(b)>2048 else b
w('archive','ustar.tar',tar(tarfile.USTAR_FORMAT,'w',E)[:4096]); w('archive','gnu.tar',tar(tarfile.GNU_FORMAT,'w',E+[('l'*150,b'long')])[:6144]); w('archive','pax.tar',tar(tarfile.PAX_FORMAT,'w',E+[('é'*80,b'long')])[:7168])
w('archive','tar.gz',tar(tarfile.PAX_FORMAT,'w:gz',E)); w('archive','link.tar',tar(tarfile.USTAR_FORMAT,'w',[('l',b'',tarfile.SYMTYPE,'/etc')])[:2048]); w('archive','hard.tar',tar(tarfile.USTAR_FORMAT,'w',[('a',b'1'),('l',b'',tarfile.LNKTYPE,'a')])[:3072])
w('archive','device.tar',tar(tarfile.USTAR_FORMAT,'w',[('c',b'',tarfile.CHRTYPE)])[:2048]); w('archive','dots.tar',tar(tarfile.USTAR_FORMAT,'w',[('../c',b'1')])[:2048]); w('archive','absolute.tar',tar(tarfile.USTAR_FORMAT,'w',[('/c',b'1')])[:2048]); w('archive','twice.tar',tar(tarfile.USTAR_FORMAT,'w',[('c',b'1'),('./c',b'2')])[:3072])
w('archive','cut.tar',tar(tarfile.USTAR_FORMAT,'w',E)[:1024])
for n,m in (('stored.zip',0),('deflated.zip',8)):
    b=io.BytesIO(); z=zipfile.ZipFile(b,'w',m)
    for e in E: z.writestr(zipfile.ZipInfo(e[0]),e[1],m)
    z.close(); w('archive',n,b.getvalue())
b=io.BytesIO(); z=zipfile.ZipFile(b,'w',8); z.writestr(zipfile.ZipInfo('bomb'),b'\0'*(1<<18),8); z.writestr(zipfile.ZipInfo('../x'),b'1'); z.close(); w('archive','bomb.zip',b.getvalue())
w('archive','tar.zst',subprocess.run(['zstd','-q','-c'],input=tar(tarfile.PAX_FORMAT,'w',E),capture_output=True).stdout)
w('archive','twice.gz',gzip.compress(gzip.compress(tar(tarfile.USTAR_FORMAT,'w',E),mtime=0),mtime=0))
z=bytearray(open(f'{root}/archive/stored.zip','rb').read())
z[6]|=1; z[z.index(b'PK\x01\x02')+8]|=1  # says that it is encrypted
w('archive','encrypted.zip',bytes(z))
w('archive','empty',b''); w('archive','empty.tar',b'\0'*1024)
def idx(dims,data,t=8): return bytes([0,0,t,len(dims)])+b''.join(struct.pack('>I',d) for d in dims)+data
w('array','images.idx',idx([2,3,2],bytes(12))); w('array','labels.idx',idx([3],bytes(3))); w('array','lies.idx',idx([0xffffffff]*4,bytes(3))); w('array','floats.idx',idx([1],bytes(4),13)); w('array','cut.idx',bytes([0,0,8,3,0,0]))
for n,a in (('f4',np.zeros((2,2,2),'<f4')),('f2',np.zeros((1,2,2,3),'<f2')),('u1',np.zeros((3,1,1),'u1')),('i8',np.arange(3)),('be',np.zeros((2,2,2),'>f4')),('fortran',np.asfortranarray(np.zeros((2,2,2),'f4'))),('object',np.zeros(2,'U3'))):
    b=io.BytesIO(); np.save(b,a); w('array',n+'.npy',b.getvalue())
b=io.BytesIO(); np.lib.format.write_array(b,np.zeros((2,2,2),'u1'),version=(2,0)); w('array','v2.npy',b.getvalue())
w('array','lies.npy',b"\x93NUMPY\x01\x00\x4a\x00{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 999999999, 9)}"); w('array','long.npy',b"\x93NUMPY\x02\x00\xff\xff\xff\xff{")
hdr=json.dumps({'images':{'dtype':'U8','shape':[2,2,2],'data_offsets':[0,8]},'labels':{'dtype':'I64','shape':[2],'data_offsets':[8,24]}}).encode()
w('array','both.safetensors',struct.pack('<Q',len(hdr))+hdr+bytes(24))
for n,t in {'plain':'a.png,1\nb.png,0\nc,3\n','header':'file,label\na.png,cat\n"b.png","do""g"\n','crlf':'label,file_name\r\ncat,a.png\r\n','quote':'"a.png,1\n,,,\n','object':'{"a.png":1,"b.png":"x"}','list':'[["a.png",1],["b.png",0]]','labels':'{"labels":[["a.png",1]]}','lines':'{"file_name":"a.png","label":"x"}\n\n{"file_name":"b.png","label":3}','negative':'a.png,-1\nb.png,99999999999\n','zero':'a.png,1\0','wrap':'[1]}, {"x":['}.items(): w('labels',n,t.encode())
